// The page: what is shown, what is asked of the server, and who is told.

import { askJson, follow, fromExample, fromFile, fromFolder, pixelsOf } from "./api.js";
import { calm, complain, nextTheme, setUpChrome, showKeys } from "./chrome.js";
import { showDownloads } from "./downloads.js";
import { Gallery } from "./gallery.js";
import { handle } from "./hands.js";
import { setUpKeys, setUpOpening } from "./inputs.js";
import { Legend, percent } from "./legend.js";
import { Pane, smallerCopy } from "./pane.js";
import { Viewport } from "./viewport.js";
import { Why } from "./why.js";

const find = (id) => document.getElementById(id);
const SPOKEN = "arrow keys move the cursor, Enter asks why, plus and minus zoom";

const scene = {
  about: null,
  classes: [],
  colours: [],
  facts: null, // Of the result that is shown.
  picture: null,
  smaller: null,
  views: [],
  version: 0, // Grows with every result.
  view: new Viewport(),
  hidden: new Set(),
  highlight: null,
  opacity: 0.5,
  mode: "classes",
  peek: false,
  seen: "tested",
  cursor: null,
  why: null,
  sourceFor(scale) {
    const { smaller, picture, view } = this;
    return smaller && scale * view.width <= smaller.width ? smaller : picture;
  },
};

let panes = [];
let source = null; // Of the image that is shown, to see it again in another way.
let working = null; // What stops the job that runs.
let frame = 0;

function changed() {
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    for (const pane of panes) pane.draw();
  });
}

const legend = new Legend(scene, changed);
const why = new Why(scene, changed, complain);
const gallery = new Gallery(scene, (one) => (showGallery(false), open(one)), complain);

// Open an image: label it, fetch what came of it, show it.
async function open(one, seen = scene.seen) {
  working?.abort();
  const mine = new AbortController();
  working = mine;
  calm();
  showGallery(false);
  waitFor(`${one.name}: waiting`, 0, 0);
  try {
    const job = await one.begin({ seen });
    const tell = (state, done, total) => mine === working && waitFor(progressOf(one, state, done, total), done, total);
    const facts = await follow(job, tell, mine.signal);
    if (!facts || mine !== working) return;
    waitFor(`${one.name}: drawing`, 0, 0);
    const pixels = await pixelsOf(facts);
    const smaller = await smallerCopy(pixels.picture);
    if (mine !== working) return;
    source = one;
    find("seen").value = seen;
    show(facts, pixels, smaller);
  } catch (error) {
    if (mine === working) complain(new Error(`${one.name}: ${error.message}`));
  } finally {
    if (mine === working) {
      working = null;
      find("work").hidden = true;
    }
  }
}

function progressOf(one, state, done, total) {
  if (state === "waiting") return `${one.name}: waiting for another image`;
  return total ? `${one.name}: ${done} of ${total} windows` : `${one.name}: labelling`;
}

function waitFor(text, done, total) {
  find("work").hidden = false;
  if (find("work-text").textContent !== text) find("work-text").textContent = text;
  const bar = find("work-bar");
  if (total) Object.assign(bar, { max: total, value: done });
  else bar.removeAttribute("value");
}

function show(facts, pixels, smaller) {
  const same = scene.facts && scene.facts.width === facts.width && scene.facts.height === facts.height;
  Object.assign(scene, { facts, picture: pixels.picture, smaller, views: pixels.views });
  Object.assign(scene, { cursor: null, highlight: null, version: scene.version + 1 });
  for (const id of ["panes", "tools", "legend", "saving"]) find(id).hidden = false;
  find("welcome").hidden = true;
  document.body.classList.add("has-picture");
  why.close();
  measure();
  if (!same) scene.view.setImage(facts.width, facts.height);
  legend.show();
  for (const pane of panes) pane.read(null);
  const lines = facts.views.map((view, i) => {
    const name = facts.views.length > 1 ? `${scene.about.models[i].name}: ` : "";
    return `${name}${view.seen}. Uncertainty ${view.uncertainty.toFixed(3)}.`;
  });
  if (facts.differing !== null) {
    lines.unshift(`The models differ on ${percent(facts.differing)} of the pixels.`);
    find("difference").textContent = `Difference (${percent(facts.differing)})`;
  }
  find("facts").textContent = `${facts.name}, ${facts.width} × ${facts.height} pixels. ${lines.join(" ")}`;
  showDownloads(scene);
  say(`${facts.name} is labelled.`);
  changed();
}

const act = {
  changed,
  point(at) {
    for (const pane of panes) pane.read(at);
  },
  move(at) {
    scene.cursor = at;
    if (at) say(panes.map((pane) => pane.read(at)).join("; "));
    changed();
  },
  ask: (view, at) => why.ask(view, at),
};

function say(text) {
  find("spoken").textContent = text;
}

function measure() {
  for (const pane of panes) scene.view.setPane(...pane.resize());
  changed();
}

function showGallery(on) {
  find("gallery").hidden = !on;
  document.body.classList.toggle("gallery-shown", on);
  find("to-gallery").setAttribute("aria-pressed", String(on));
  find("to-picture").setAttribute("aria-pressed", String(!on));
  if (!on) measure();
}

function setOpacity(value) {
  const percentage = Math.min(100, Math.max(0, Math.round(value)));
  find("opacity").value = percentage;
  find("opacity-value").textContent = `${percentage} %`;
  scene.opacity = percentage / 100;
  changed();
}

function setDifference(on) {
  scene.mode = on ? "difference" : "classes";
  find("difference").setAttribute("aria-pressed", String(on));
  changed();
}

function setPeek(on) {
  scene.peek = on;
  changed();
}

function zoom(factor) {
  scene.view.zoom(factor);
  changed();
}

function runGallery(sources) {
  calm();
  showGallery(true);
  gallery.run(sources);
}

function setUpTools() {
  find("in").addEventListener("click", () => zoom(1.5));
  find("out").addEventListener("click", () => zoom(1 / 1.5));
  find("fit").addEventListener("click", () => (scene.view.fit(), changed()));
  find("opacity").addEventListener("input", (event) => setOpacity(Number(event.target.value)));
  find("difference").addEventListener("click", () => setDifference(scene.mode === "classes"));
  find("seen").addEventListener("change", (event) => {
    scene.seen = event.target.value;
    if (source) open(source);
  });
  find("cancel").addEventListener("click", () => working?.abort());
  find("to-gallery").addEventListener("click", () => showGallery(true));
  find("to-picture").addEventListener("click", () => showGallery(false));
  new ResizeObserver(measure).observe(find("panes"));
  addEventListener("keyup", (event) => event.key === "p" && setPeek(false));
  addEventListener("blur", () => setPeek(false));
}

const SHORTCUTS = {
  o: () => find("file").click(),
  "+": () => zoom(1.5),
  "=": () => zoom(1.5),
  "-": () => zoom(1 / 1.5),
  0: () => (scene.view.fit(), changed()),
  "[": () => setOpacity(100 * scene.opacity - 10),
  "]": () => setOpacity(100 * scene.opacity + 10),
  p: () => setPeek(true),
  a: () => legend.hide([]),
  d: () => panes.length > 1 && setDifference(scene.mode === "classes"),
  g: () => showGallery(find("gallery").hidden),
  t: () => nextTheme(changed),
  "?": showKeys,
  Escape() {
    if (working) working.abort();
    else if (gallery.running) gallery.cancel();
    else if (!find("message").hidden) calm();
    else why.close();
  },
};

async function start() {
  setUpChrome(changed);
  const about = await askJson("/api/about");
  Object.assign(scene, { about, classes: about.classes, colours: about.colours });
  const titles = about.models.map((model) => [model.name, model.what].filter(Boolean).join(", "));
  find("models").textContent = titles.join("  |  ");
  document.title = `${about.models.map((model) => model.name).join(" and ")} - ccsnet`;
  panes = about.models.map((model, i) => {
    const title = about.models.length > 1 ? model.name : "";
    return new Pane(scene, i, title, `${title || "Picture"}: ${SPOKEN}`);
  });
  find("panes").append(...panes.map((pane) => pane.figure));
  for (const pane of panes) handle(pane, act);
  document.body.classList.toggle("two-models", panes.length > 1);
  find("difference").hidden = panes.length < 2;
  find("seen-label").hidden = !about.windows;
  const mega = (about.max_pixels / 1e6).toFixed(0);
  find("limits").textContent =
    `JPEG, PNG, TIFF, WebP, BMP; up to ${mega} megapixels. It stays on this machine.`;
  showExamples();
  showFolder();
  const fromUser = (file) => fromFile(file, about);
  setUpOpening(
    (file) => open(fromUser(file)),
    (files) => runGallery(files.map(fromUser)),
  );
  setUpTools();
  setUpKeys(SHORTCUTS);
  document.body.classList.add("ready");
}

function showExamples() {
  const { examples } = scene.about;
  const buttons = examples.map((example, number) => {
    const button = Object.assign(document.createElement("button"), { type: "button" });
    button.className = "example";
    button.title = example.name;
    button.setAttribute("aria-label", `Example: ${example.name}`);
    const picture = Object.assign(document.createElement("img"), { alt: "", loading: "lazy" });
    picture.src = `/api/examples/${number}/thumbnail`;
    button.append(picture);
    button.addEventListener("click", () => {
      // What is best seen in windows is so, whatever was chosen for other images.
      const seen = scene.about.windows && example.seen === "windows" ? "windows" : scene.seen;
      open(fromExample(number, example.name), seen);
    });
    return button;
  });
  find("examples").append(...buttons);
}

function showFolder() {
  const { folder } = scene.about;
  const button = find("run-folder");
  button.hidden = folder.length === 0;
  button.textContent = `Label the folder (${folder.length})`;
  const sources = folder.map((name, number) => fromFolder(number, name));
  button.addEventListener("click", () => runGallery(sources));
  const count = Object.assign(document.createElement("span"), { className: "wide" });
  count.textContent = folder.length ? ` (${folder.length})` : "";
  find("to-gallery").append(count);
}

start().catch(complain);
