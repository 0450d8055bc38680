// Mouse, fingers and keys on a picture: zoom, pan, point, ask.

const CLICK = 5; // Pixels a pointer may move in a click.

export function handle(pane, act) {
  const { canvas, scene } = pane;
  const { view } = scene;
  const pointers = new Map();
  let moved = 0;

  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };

  canvas.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      const step = event.deltaMode === 0 ? event.deltaY : event.deltaY * 30;
      view.zoom(Math.exp(-Math.max(-200, Math.min(200, step)) / 400), ...place(event));
      act.changed();
    },
    { passive: false },
  );

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    pointers.set(event.pointerId, place(event));
    if (pointers.size === 1) moved = 0;
    if (event.pointerType !== "touch" || !view.fits) canvas.setPointerCapture(event.pointerId);
  });

  canvas.addEventListener("pointermove", (event) => {
    const at = place(event);
    const before = pointers.get(event.pointerId);
    if (!before) {
      if (event.pointerType !== "touch") act.point(view.pixel(...at));
      return;
    }
    moved += Math.abs(at[0] - before[0]) + Math.abs(at[1] - before[1]);
    if (pointers.size === 1 && moved <= CLICK) return; // From where it was pressed it is dragged.
    if (pointers.size === 2) pinch(event.pointerId, before, at);
    else view.pan(at[0] - before[0], at[1] - before[1]);
    pointers.set(event.pointerId, at);
    canvas.classList.toggle("dragged", moved > CLICK);
    act.changed();
  });

  function pinch(id, before, at) {
    const [, still] = [...pointers].find(([other]) => other !== id);
    const apart = (a) => Math.hypot(a[0] - still[0], a[1] - still[1]) || 1;
    view.zoom(apart(at) / apart(before), (at[0] + still[0]) / 2, (at[1] + still[1]) / 2);
    moved = Infinity;
  }

  const over = (event, asked) => {
    const known = pointers.delete(event.pointerId);
    if (pointers.size === 0) canvas.classList.remove("dragged");
    const at = view.pixel(...place(event));
    if (asked && known && moved <= CLICK && pointers.size === 0 && at) {
      act.point(at);
      act.ask(pane.index, at);
    }
  };
  canvas.addEventListener("pointerup", (event) => over(event, true));
  canvas.addEventListener("pointercancel", (event) => over(event, false));
  canvas.addEventListener("pointerleave", (event) => {
    // A finger that is lifted leaves, too: what it touched stays named.
    if (!pointers.size && event.pointerType !== "touch") act.point(scene.cursor);
  });
  canvas.addEventListener("blur", () => act.move(null));

  const arrows = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const arrow = arrows[event.key];
    if (arrow) {
      const step = event.shiftKey ? 1 : Math.max(1, Math.round(12 / view.scale));
      const from = scene.cursor ?? { row: Math.floor(view.y), column: Math.floor(view.x) };
      const row = bounded(from.row + step * arrow[0], view.height);
      const column = bounded(from.column + step * arrow[1], view.width);
      view.reveal(column, row);
      act.move({ row, column });
    } else if (event.key === "Enter") {
      const at = scene.cursor ?? { row: Math.floor(view.y), column: Math.floor(view.x) };
      act.move(at);
      act.ask(pane.index, at);
    } else return;
    event.preventDefault();
  });
}

function bounded(value, side) {
  return Math.min(side - 1, Math.max(0, value));
}
