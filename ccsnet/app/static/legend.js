// The classes of the picture: their shares, and which of them are shown.

const SEEN = 5e-5; // Less of the pixels than 0.01 % is said to be that.

export function percent(share) {
  if (share === 0) return "-";
  if (share < SEEN) return "<0.01 %";
  const digits = share < 0.0995 ? (share < 0.00995 ? 2 : 1) : 0;
  return `${(100 * share).toFixed(digits)} %`;
}

export class Legend {
  constructor(scene, changed) {
    Object.assign(this, { scene, changed });
    this.list = document.getElementById("classes");
    this.absent = document.getElementById("absent");
    document.getElementById("all").addEventListener("click", () => this.hide([]));
    document.getElementById("none").addEventListener("click", () => this.hide(this.present()));
  }

  // Classes that any of the models sees, those with the most pixels first.
  present() {
    const { facts, classes } = this.scene;
    if (!facts) return [];
    const most = classes.map((_, i) => Math.max(...facts.views.map((view) => view.shares[i])));
    return [...most.keys()].filter((i) => most[i] > 0).sort((a, b) => most[b] - most[a]);
  }

  show() {
    const { scene } = this;
    const present = this.present();
    this.list.replaceChildren(...present.map((index) => this.row(index)));
    if (scene.facts.views.length > 1) this.list.prepend(this.head());
    const rest = scene.classes.filter((_, index) => !present.includes(index));
    this.absent.hidden = rest.length === 0;
    this.absent.querySelector("summary").textContent = `${rest.length} not in the picture`;
    this.absent.querySelector("p").textContent = rest.join(", ");
    this.tick();
  }

  // Whose shares stand in which column.
  head() {
    const item = Object.assign(document.createElement("li"), { className: "head dim" });
    for (const { name } of this.scene.about.models) {
      const words = { className: "share", textContent: name, title: name };
      item.append(Object.assign(document.createElement("span"), words));
    }
    return item;
  }

  row(index) {
    const { scene } = this;
    const name = scene.classes[index];
    const item = document.createElement("li");
    const label = document.createElement("label");
    const box = Object.assign(document.createElement("input"), { type: "checkbox" });
    box.dataset.index = index;
    box.style.setProperty("--paint", `rgb(${scene.colours[index]})`);
    box.addEventListener("change", () => {
      if (box.checked) scene.hidden.delete(index);
      else scene.hidden.add(index);
      this.told();
    });
    const text = document.createElement("span");
    text.className = "name";
    text.textContent = name;
    label.append(box, text);
    for (const view of scene.facts.views) {
      const share = document.createElement("span");
      share.className = "share";
      share.textContent = percent(view.shares[index]);
      label.append(share);
    }
    const only = Object.assign(document.createElement("button"), { type: "button" });
    only.className = "link only";
    only.textContent = "only";
    only.setAttribute("aria-label", `Only ${name}`);
    only.addEventListener("click", () => {
      const others = this.present().filter((other) => other !== index);
      const alone = !scene.hidden.has(index) && others.every((other) => scene.hidden.has(other));
      this.hide(alone ? [] : others);
    });
    const bar = document.createElement("span");
    bar.className = "bar";
    bar.style.width = `${100 * Math.max(...scene.facts.views.map((v) => v.shares[index]))}%`;
    bar.style.background = `rgb(${scene.colours[index]})`;
    item.append(label, only, bar);
    item.addEventListener("pointerenter", () => this.light(index));
    item.addEventListener("pointerleave", () => this.light(null));
    return item;
  }

  light(index) {
    this.scene.highlight = index;
    this.changed();
  }

  hide(indices) {
    this.scene.hidden = new Set(indices);
    this.told();
  }

  told() {
    this.tick();
    this.changed();
  }

  tick() {
    for (const box of this.list.querySelectorAll("input")) {
      box.checked = !this.scene.hidden.has(Number(box.dataset.index));
    }
  }
}
