// Redoc's footer loads a logo from another host. Pages load nothing from other hosts, so such images get no source.
const isOwn = (url) => url.startsWith("data:") || new URL(url, location.href).origin === location.origin;
const image = HTMLImageElement.prototype;
const source = Object.getOwnPropertyDescriptor(image, "src");
const setAttribute = image.setAttribute;
Object.defineProperty(image, "src", { ...source, set(url) { if (isOwn(String(url))) source.set.call(this, url); } });
image.setAttribute = function (name, value) {
  if (name !== "src" || isOwn(String(value))) setAttribute.call(this, name, value);
};
