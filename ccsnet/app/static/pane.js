// One model's picture: the image, its classes over it, the cursor, or where a centre came from.

import { paintLabels, paints } from "./paint.js";

const LARGE = 2048; // A copy of this size is drawn where larger pictures are shown smaller.

export class Pane {
  constructor(scene, index, title, spoken) {
    this.scene = scene;
    this.index = index;
    this.figure = document.createElement("figure");
    this.caption = document.createElement("figcaption");
    this.title = document.createElement("span");
    this.title.className = "model";
    this.title.textContent = title;
    this.readout = document.createElement("span");
    this.readout.className = "readout";
    this.readout.id = `readout-${index}`;
    this.caption.append(this.title, this.readout);
    this.canvas = document.createElement("canvas");
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "application");
    this.canvas.setAttribute("aria-label", spoken);
    this.canvas.setAttribute("aria-describedby", this.readout.id);
    this.figure.append(this.caption, this.canvas);
    this.paint = document.createElement("canvas");
    this.painted = "";
  }

  resize() {
    const { clientWidth, clientHeight } = this.canvas;
    this.density = Math.min(2, window.devicePixelRatio || 1);
    const width = Math.round(clientWidth * this.density);
    const height = Math.round(clientHeight * this.density);
    for (const canvas of [this.canvas, this.paint]) Object.assign(canvas, { width, height });
    this.painted = "";
    return [clientWidth, clientHeight];
  }

  draw() {
    const { scene, canvas, density } = this;
    const context = canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (!scene.picture || !canvas.width || !canvas.height) return;
    const { view } = scene;
    canvas.style.touchAction = view.fits ? "pan-y" : "none"; // A finger scrolls the page, or pans.
    context.setTransform(density, 0, 0, density, 0, 0);
    const [left, top] = view.toPane(0, 0);
    const place = [left, top, view.width * view.scale, view.height * view.scale];
    context.imageSmoothingEnabled = view.scale < 2;
    context.drawImage(scene.sourceFor(view.scale * density), ...place);
    if (scene.why?.view === this.index) this.drawHeat(context, place);
    else if (!scene.peek) this.drawClasses(context);
    this.drawMarks(context);
  }

  drawClasses(context) {
    const { scene, paint } = this;
    const { view, views, hidden, highlight } = scene;
    const difference = scene.mode === "difference" && views.length > 1;
    const state = [view.x, view.y, view.scale, scene.version, difference, [...hidden], highlight];
    if (this.painted !== state.join()) {
      this.painted = state.join();
      const { label } = views[this.index];
      const values = label.BYTES_PER_ELEMENT === 1 ? 256 : 65536;
      const table = paints(scene.colours, hidden, highlight, values);
      const other = difference ? views[1 - this.index].label : null;
      paintLabels(paint, label, view, this.density, table, other);
    }
    context.save();
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.globalAlpha = scene.opacity;
    context.drawImage(paint, 0, 0);
    context.restore();
  }

  drawHeat(context, place) {
    context.save();
    context.fillStyle = "#000";
    context.globalAlpha = 0.35;
    context.fillRect(...place);
    context.globalAlpha = 0.8;
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = "high";
    context.drawImage(this.scene.why.heat, ...place);
    context.restore();
  }

  drawMarks(context) {
    const { scene } = this;
    const marks = [[scene.cursor, true], [scene.why?.view === this.index ? scene.why : null, false]];
    for (const [at, cross] of marks) {
      if (!at) continue;
      const [x, y] = scene.view.toPane(at.column + 0.5, at.row + 0.5);
      for (const [colour, width] of [["#000", 4], ["#fff", 2]]) {
        context.strokeStyle = colour;
        context.lineWidth = width;
        context.beginPath();
        if (cross) {
          for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) {
            context.moveTo(x + 5 * dx, y + 5 * dy);
            context.lineTo(x + 13 * dx, y + 13 * dy);
          }
        } else context.arc(x, y, 9, 0, 2 * Math.PI);
        context.stroke();
      }
    }
  }

  // Say what is at a pixel.
  read(at) {
    const { scene, readout } = this;
    readout.replaceChildren();
    if (!at || !scene.views.length) return "";
    const { row, column } = at;
    const { label, confidence } = scene.views[this.index];
    const index = label[row * scene.view.width + column];
    const [rows, columns] = scene.facts.views[this.index].confidence;
    const y = Math.floor(((row + 0.5) * rows) / scene.view.height);
    const x = Math.floor(((column + 0.5) * columns) / scene.view.width);
    const sure = Math.round((confidence[y * columns + x] / 255) * 100);
    const name = scene.classes[index] ?? "no class";
    const chip = document.createElement("i");
    chip.className = "chip";
    chip.style.background = `rgb(${scene.colours[index] ?? [0, 0, 0]})`;
    const strong = document.createElement("b");
    strong.textContent = name;
    readout.append(chip, strong, ` ${sure} %`);
    const where = document.createElement("span");
    where.className = "dim where";
    where.textContent = `row ${row}, column ${column}`;
    readout.append(where);
    return `${name}, ${sure} per cent`;
  }
}

// A smaller copy of a large picture, in which fewer pixels are skipped when it is shown small.
export async function smallerCopy(picture) {
  const factor = LARGE / Math.max(picture.width, picture.height);
  if (factor >= 1) return null;
  return createImageBitmap(picture, {
    resizeWidth: Math.max(1, Math.round(picture.width * factor)),
    resizeHeight: Math.max(1, Math.round(picture.height * factor)),
    resizeQuality: "medium",
  });
}
