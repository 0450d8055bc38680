// How images and orders reach the page: drops, the clipboard, file buttons, keys.

const find = (id) => document.getElementById(id);

// Several images go to the gallery; those of the gallery's own button always.
export function setUpOpening(openOne, openMany) {
  const open = (files) => {
    if (files.length > 1) openMany(files);
    else if (files.length) openOne(files[0]);
  };
  for (const id of ["open", "open-too"]) find(id).addEventListener("click", () => find("file").click());
  find("run-files").addEventListener("click", () => find("files").click());
  for (const id of ["file", "files"]) {
    find(id).addEventListener("change", (event) => {
      const files = [...event.target.files];
      event.target.value = ""; // So that the same file can be chosen again.
      if (id === "files" && files.length) openMany(files);
      else open(files);
    });
  }
  let inside = 0;
  const hover = (step) => (event) => {
    event.preventDefault();
    inside = step === null ? 0 : Math.max(0, inside + step);
    document.body.classList.toggle("dropping", inside > 0);
  };
  addEventListener("dragenter", hover(1));
  addEventListener("dragleave", hover(-1));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    hover(null)(event);
    open([...(event.dataTransfer?.files ?? [])]);
  });
  addEventListener("paste", (event) => open([...(event.clipboardData?.files ?? [])]));
}

// Keys that mean the same wherever the focus is, unless what has it takes text.
export function setUpKeys(shortcuts) {
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (find("keys").open || event.target.matches?.("select, input[type=text]")) return;
    const shortcut = shortcuts[event.key];
    if (shortcut) {
      shortcut();
      event.preventDefault();
    }
  });
}
