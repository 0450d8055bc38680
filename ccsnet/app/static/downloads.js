// Links to the files of a result.

export function showDownloads(scene) {
  const { facts, about } = scene;
  const stem = facts.name.replace(/\.[^.]*$/, "").replace(/[^\w.-]+/g, "_") || "image";
  const kinds = { index: "index PNG", color: "palette PNG", overlay: "overlay PNG" };
  const items = facts.views.map((_, view) => {
    const item = document.createElement("li");
    if (facts.views.length > 1) item.append(`${about.models[view].name}: `);
    for (const [kind, text] of Object.entries(kinds)) {
      const link = Object.assign(document.createElement("a"), { textContent: text });
      link.href = `/api/results/${facts.id}/${view}/${kind}.png`;
      link.download = `${stem}_${kind}.png`;
      if (kind === "overlay") {
        const base = link.href;
        const asShown = () => {
          const query = { opacity: scene.opacity, hidden: [...scene.hidden].join() };
          link.href = `${base}?${new URLSearchParams(query)}`;
        };
        link.addEventListener("click", asShown);
        link.addEventListener("contextmenu", asShown);
        link.title = "As it is shown: this opacity, these classes";
      }
      item.append(link, " ");
    }
    return item;
  });
  document.getElementById("downloads").replaceChildren(...items);
}
