// A dialog over the page, as the viewer of samples and the question before deleting are.

/** Open a <dialog>: Escape, a click beside it and `close` end it; it is removed then, and `ended()` is called. */
export function openModal(dialog, close, ended = () => {}) {
  dialog.onkeydown = (event) => event.stopPropagation(); // letters and Delete mean something to the canvas behind it
  dialog.onclick = (event) => event.target === dialog && dialog.close(); // beside it
  close.onclick = () => dialog.close();
  dialog.onclose = () => {
    dialog.remove();
    ended();
  };
  document.body.append(dialog);
  dialog.showModal();
}
