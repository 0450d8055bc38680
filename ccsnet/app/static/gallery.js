// Many images, those first of which the model is least sure.

import { follow, Refused } from "./api.js";
import { percent } from "./legend.js";

const MOST = 2000; // Tiles that are shown.
const NAMED = 2; // Classes under a tile.

export class Gallery {
  constructor(scene, open, complain) {
    Object.assign(this, { scene, open, complain });
    const find = (id) => document.getElementById(id);
    this.tiles = find("tiles");
    this.bar = find("run-bar");
    this.text = find("run-text");
    this.stop = find("run-stop");
    this.begin = [find("run-folder"), find("run-files")];
    this.stop.addEventListener("click", () => this.cancel());
  }

  cancel() {
    this.stopping?.abort();
  }

  get running() {
    return Boolean(this.stopping);
  }

  async run(sources) {
    if (this.running) return;
    const chosen = sources.slice(0, MOST);
    this.stopping = new AbortController();
    this.tiles.replaceChildren();
    this.shown(true);
    let done = 0;
    let failed = 0;
    Object.assign(this.bar, { max: chosen.length, value: 0 });
    try {
      for (const source of chosen) {
        if (this.stopping.signal.aborted) break;
        this.text.textContent = `${done} of ${chosen.length} · ${source.name}`;
        failed += await this.one(source);
        this.bar.value = ++done;
      }
      const rest = sources.length - chosen.length;
      const parts = [`${done - failed} of ${sources.length} images labelled`];
      if (failed) parts.push(`${failed} could not be`);
      if (rest) parts.push(`the first ${MOST} only: \`ccsnet predict\` takes any number`);
      if (this.stopping.signal.aborted) parts.push("cancelled");
      this.text.textContent = parts.join(", ") + ".";
    } catch (error) {
      this.text.textContent = "";
      this.complain(error);
    } finally {
      this.stopping = null;
      this.shown(false);
    }
  }

  // Label one image; 1 where it cannot be.
  async one(source) {
    const { signal } = this.stopping;
    try {
      const query = { brief: 1, seen: this.scene.seen };
      const found = await follow(await source.begin(query), () => {}, signal);
      if (found) this.place(this.tile(source, found), found.uncertainty);
      return 0;
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      this.place(this.broken(source, error.message), -1);
      return 1;
    }
  }

  // Put a tile behind all that are less sure.
  place(tile, uncertainty) {
    tile.dataset.uncertainty = uncertainty;
    const after = [...this.tiles.children].find((o) => Number(o.dataset.uncertainty) < uncertainty);
    this.tiles.insertBefore(tile, after ?? null);
  }

  tile(source, found) {
    const { classes } = this.scene;
    const item = document.createElement("li");
    const button = Object.assign(document.createElement("button"), { type: "button" });
    button.className = "tile";
    const picture = Object.assign(document.createElement("img"), { src: found.thumbnail, alt: "" });
    const name = words("b", source.name);
    const sure = words("span", `uncertainty ${found.uncertainty.toFixed(3)}`);
    const order = [...found.shares.keys()].sort((a, b) => found.shares[b] - found.shares[a]);
    const most = order.slice(0, NAMED).filter((i) => found.shares[i] > 0);
    const shares = most.map((i) => `${classes[i]} ${percent(found.shares[i])}`).join(", ");
    button.append(picture, name, sure, words("span", shares, "dim"));
    button.addEventListener("click", () => this.open(source));
    item.append(button);
    return item;
  }

  broken(source, why) {
    const item = document.createElement("li");
    const box = words("div", "", "tile broken");
    box.append(words("b", source.name), words("span", why));
    item.append(box);
    return item;
  }

  shown(running) {
    this.bar.hidden = this.stop.hidden = !running;
    for (const button of this.begin) button.disabled = running;
  }
}

function words(tag, text, kind = "") {
  return Object.assign(document.createElement(tag), { textContent: text, className: kind });
}
