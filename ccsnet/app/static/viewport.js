// Which part of the image is shown: shared by all panes, so that they move together.

const MAX_SCALE = 40;

export class Viewport {
  constructor() {
    this.width = this.height = 1; // Of the image, in pixels.
    this.paneWidth = this.paneHeight = 1; // Of a pane, in CSS pixels.
    this.fits = true;
    this.fit();
  }

  get fitting() {
    return Math.min(this.paneWidth / this.width, this.paneHeight / this.height);
  }

  setImage(width, height) {
    Object.assign(this, { width, height });
    this.fit();
  }

  setPane(width, height) {
    Object.assign(this, { paneWidth: Math.max(1, width), paneHeight: Math.max(1, height) });
    if (this.fits) this.fit();
    else this.settle();
  }

  fit() {
    this.fits = true;
    this.scale = this.fitting;
    this.x = this.width / 2; // The image's point in the middle of a pane.
    this.y = this.height / 2;
  }

  // Zoom so that what is at a point of the pane stays there.
  zoom(factor, px = this.paneWidth / 2, py = this.paneHeight / 2) {
    const [x, y] = this.toImage(px, py);
    const smallest = Math.min(this.fitting, 1);
    const largest = Math.max(MAX_SCALE, this.fitting);
    const scale = Math.min(largest, Math.max(smallest, this.scale * factor));
    this.scale = scale;
    this.x = x - (px - this.paneWidth / 2) / scale;
    this.y = y - (py - this.paneHeight / 2) / scale;
    this.fits = scale <= this.fitting * 1.001 && scale >= this.fitting * 0.999;
    this.settle();
  }

  pan(dx, dy) {
    this.x -= dx / this.scale;
    this.y -= dy / this.scale;
    this.settle();
  }

  // Bring a pixel of the image into the pane.
  reveal(column, row) {
    const halfWidth = this.paneWidth / 2 / this.scale;
    const halfHeight = this.paneHeight / 2 / this.scale;
    this.x = Math.min(Math.max(this.x, column - halfWidth * 0.9), column + halfWidth * 0.9);
    this.y = Math.min(Math.max(this.y, row - halfHeight * 0.9), row + halfHeight * 0.9);
    this.settle();
  }

  // Of an image smaller than the pane all is seen; of a larger one no more than its own.
  settle() {
    if (this.fits) return this.fit();
    const halfWidth = this.paneWidth / 2 / this.scale;
    const halfHeight = this.paneHeight / 2 / this.scale;
    this.x = within(this.x, halfWidth, this.width - halfWidth);
    this.y = within(this.y, halfHeight, this.height - halfHeight);
    return undefined;
  }

  toImage(px, py) {
    return [
      (px - this.paneWidth / 2) / this.scale + this.x,
      (py - this.paneHeight / 2) / this.scale + this.y,
    ];
  }

  toPane(x, y) {
    return [
      (x - this.x) * this.scale + this.paneWidth / 2,
      (y - this.y) * this.scale + this.paneHeight / 2,
    ];
  }

  // The pixel at a point of the pane, or null outside the image.
  pixel(px, py) {
    const [column, row] = this.toImage(px, py).map(Math.floor);
    const inside = column >= 0 && row >= 0 && column < this.width && row < this.height;
    return inside ? { row, column } : null;
  }
}

function within(value, low, high) {
  return low > high ? (low + high) / 2 : Math.min(high, Math.max(low, value));
}
