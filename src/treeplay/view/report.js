"use strict";
// The page works without this: it only opens what a link points at, and filters the long lists.
function openTarget() {
  let at = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
  if (!at) return;
  for (let up = at; up; up = up.parentElement) if (up.tagName === "DETAILS") up.open = true;
  at.scrollIntoView({ block: "nearest" });
}
addEventListener("hashchange", openTarget);
openTarget();
for (const box of document.querySelectorAll(".filter")) {
  box.hidden = false;
  const items = () => document.getElementById(box.dataset.list).querySelectorAll(":scope > .item");
  box.querySelector("input").addEventListener("input", (event) => {
    const wanted = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const item of items()) {
      const text = item.dataset.words.toLowerCase();
      item.hidden = !wanted.every((word) => text.includes(word));
    }
  });
  box.querySelector("button").addEventListener("click", () => {
    const open = [...items()].some((item) => !item.hidden && !item.open);
    for (const item of items()) {
      if (!item.hidden) for (const one of [item, ...item.querySelectorAll("details")]) one.open = open;
    }
  });
}
