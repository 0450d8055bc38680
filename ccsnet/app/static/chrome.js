// What stands around the picture: messages, light and dark, the list of keys.

const THEMES = { auto: ["◐", "as the system"], light: ["☀", "light"], dark: ["☾", "dark"] };

const KEYS = [
  ["o", "open an image"],
  ["Ctrl V", "paste one"],
  ["arrows", "on the picture: move the cursor (Shift: by one pixel)"],
  ["Enter", "on the picture: why here?"],
  ["Esc", "end “why here?”, close a message, cancel"],
  ["+ −", "larger, smaller"],
  ["0", "whole picture"],
  ["[ ]", "opacity"],
  ["p", "hold: the picture alone"],
  ["a", "all classes"],
  ["d", "difference of two models"],
  ["g", "gallery or picture"],
  ["t", "light, dark, or as the system"],
  ["?", "this list"],
];

export function complain(error) {
  const box = document.getElementById("message");
  box.querySelector("span").textContent = error.message ?? String(error);
  box.hidden = false;
}

export function calm() {
  document.getElementById("message").hidden = true;
}

export function setUpChrome(changed) {
  document.querySelector("#message button").addEventListener("click", calm);
  const list = document.querySelector("#keys dl");
  for (const [key, meaning] of KEYS) {
    const term = document.createElement("dt");
    for (const part of key.split(" ")) {
      term.append(Object.assign(document.createElement("kbd"), { textContent: part }), " ");
    }
    list.append(term, Object.assign(document.createElement("dd"), { textContent: meaning }));
  }
  document.getElementById("help").addEventListener("click", showKeys);
  document.getElementById("theme").addEventListener("click", () => nextTheme(changed));
  setTheme(remembered());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
}

export function showKeys() {
  const box = document.getElementById("keys");
  if (!box.open) box.showModal();
}

export function nextTheme(changed) {
  const names = Object.keys(THEMES);
  const next = names[(names.indexOf(document.documentElement.dataset.theme) + 1) % names.length];
  setTheme(next);
  try {
    localStorage.setItem("theme", next);
  } catch {
    // Private windows remember nothing.
  }
  changed();
}

function remembered() {
  try {
    const name = localStorage.getItem("theme");
    return name in THEMES ? name : "auto";
  } catch {
    return "auto";
  }
}

function setTheme(name) {
  const [sign, meaning] = THEMES[name];
  document.documentElement.dataset.theme = name;
  const button = document.getElementById("theme");
  button.textContent = sign;
  button.title = `Colours: ${meaning} (t)`;
  button.setAttribute("aria-label", `Colours: ${meaning}`);
}
