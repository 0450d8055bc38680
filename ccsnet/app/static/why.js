// "Why here?": the classes that counted at a pixel, and where their centres came from.

import { askJson } from "./api.js";
import { heatCanvas } from "./paint.js";

const EVERYTHING = -1;

export class Why {
  constructor(scene, changed, complain) {
    Object.assign(this, { scene, changed, complain, asked: 0 });
    this.panel = document.getElementById("why");
    this.body = document.getElementById("why-body");
    document.getElementById("why-close").addEventListener("click", () => this.close());
  }

  close() {
    this.asked++;
    this.scene.why = null;
    this.panel.hidden = true;
    this.changed();
  }

  async ask(view, { row, column }) {
    const { scene } = this;
    const mine = ++this.asked;
    const model = scene.about.models[view];
    this.panel.hidden = false;
    if (model.silent) {
      scene.why = null;
      this.say(model.silent);
      this.changed();
      return;
    }
    this.say("Looking …");
    try {
      const query = new URLSearchParams({ row, column });
      const found = await askJson(`/api/results/${scene.facts.id}/${view}/why?${query}`);
      if (mine === this.asked) this.show(view, found);
    } catch (error) {
      if (mine !== this.asked) return;
      this.close();
      this.complain(error);
    }
  }

  say(text) {
    const line = document.createElement("p");
    line.className = "dim";
    line.textContent = text;
    this.body.replaceChildren(line);
  }

  show(view, found) {
    this.found = found;
    this.view = view;
    const { classes, about } = this.scene;
    const [height, width] = found.seen;
    const name = (index) => classes[index] ?? "no class";
    const lines = [];
    const where = about.models.length > 1 ? ` by ${about.models[view].name}` : "";
    lines.push(text(`Row ${found.row}, column ${found.column}: ${name(found.label)}${where}.`));
    if (found.label !== found.winner) {
      lines.push(text(`With all of the picture seen at once, as here, it is ${name(found.winner)}.`, "dim"));
    }
    const best = Math.max(...found.classes.map((one) => one.coarse), 1e-6);
    const table = document.createElement("div");
    table.className = "scores";
    table.setAttribute("role", "group");
    table.setAttribute("aria-label", "Whose centre is shown");
    for (const one of found.classes) table.append(this.score(one, best));
    table.append(this.everything());
    const note =
      `Bars: scores of the coarse prediction, by which classes are chosen. Read: how much the ` +
      `pixel took from each class's centre. The picture shows where the chosen centre was ` +
      `gathered, brighter for more; it was seen at ${width} × ${height}.`;
    this.body.replaceChildren(...lines, table, text(note, "dim small"));
    this.choose(found.winner);
  }

  score(one, best) {
    const { classes, colours } = this.scene;
    const button = choice(one.index);
    const chip = document.createElement("i");
    chip.className = "chip";
    chip.style.background = `rgb(${colours[one.index]})`;
    const name = document.createElement("span");
    name.className = "name";
    name.textContent = classes[one.index] + (one.relevant ? "" : " (not relevant)");
    const score = document.createElement("span");
    score.className = "share";
    score.textContent = `${(100 * one.coarse).toFixed(1)} %`;
    const read = document.createElement("span");
    read.className = "share dim";
    read.textContent = `read ${Math.round(100 * one.read)} %`;
    const bar = document.createElement("span");
    bar.className = "bar";
    bar.style.width = `${(100 * one.coarse) / best}%`;
    bar.style.background = `rgb(${colours[one.index]})`;
    button.append(chip, name, score, read, bar);
    button.addEventListener("click", () => this.choose(one.index));
    return button;
  }

  everything() {
    const button = choice(EVERYTHING);
    button.append(text("all that the pixel read", "name"));
    button.addEventListener("click", () => this.choose(EVERYTHING));
    return button;
  }

  choose(index) {
    const { found, view, scene } = this;
    const chosen = found.classes.find((one) => one.index === index);
    const weights = chosen ? chosen.centre : found.everything;
    scene.why = { view, row: found.row, column: found.column, heat: heatCanvas(weights, found.grid) };
    for (const button of this.body.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.index) === index));
    }
    this.changed();
  }
}

function choice(index) {
  const button = Object.assign(document.createElement("button"), { type: "button" });
  button.className = "score";
  button.dataset.index = index;
  return button;
}

function text(words, kind = "") {
  const line = document.createElement(kind.includes("name") ? "span" : "p");
  line.textContent = words;
  line.className = kind;
  return line;
}
