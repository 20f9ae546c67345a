// The photograph in the browser: shows it, draws a box under the mouse, and hands over
// pictures that are pasted or dropped. Loaded by hmr_nb.inference.photo_tool.

// the longest side of a picture on its way to the kernel, px: a Jupyter server closes
// the line on very long messages
const LONGEST = 2048;

// A file as a JPEG's data address; empty if it is no picture.
async function asJpeg(file) {
  if (!file) return "";
  try {
    const whole = await createImageBitmap(file);
    const scale = Math.min(1, LONGEST / Math.max(whole.width, whole.height));
    const sheet = document.createElement("canvas");
    sheet.width = Math.max(1, Math.round(scale * whole.width));
    sheet.height = Math.max(1, Math.round(scale * whole.height));
    const pen = sheet.getContext("2d");
    pen.fillStyle = "#fff";
    pen.fillRect(0, 0, sheet.width, sheet.height);
    pen.drawImage(whole, 0, 0, sheet.width, sheet.height);
    return sheet.toDataURL("image/jpeg", 0.93);
  } catch {
    return "";
  }
}

// Set a trait to `value` and a new count, so that equal values arrive twice.
function send(model, trait, value) {
  const count = (model.get(trait).count ?? 0) + 1;
  model.set(trait, { ...value, count });
  model.save_changes();
}

function render({ model, el }) {
  el.classList.add("hmr-photo");
  el.tabIndex = 0;
  el.dataset.lmSuppressShortcuts = "true";
  const image = document.createElement("img");
  image.draggable = false;
  image.alt = "";
  const box = document.createElement("i");
  const hint = document.createElement("span");
  hint.textContent = "click here, then paste a picture";
  el.append(image, box, hint);
  let from = null; // the corner where the mouse went down, as shares

  const place = (corners) => {
    box.style.display = corners.length ? "block" : "none";
    if (!corners.length) return;
    const [x0, y0, x1, y1] = corners;
    box.style.left = `${100 * Math.min(x0, x1)}%`;
    box.style.top = `${100 * Math.min(y0, y1)}%`;
    box.style.width = `${100 * Math.abs(x1 - x0)}%`;
    box.style.height = `${100 * Math.abs(y1 - y0)}%`;
  };
  const draw = () => {
    const there = model.get("picture");
    if (there) image.src = there;
    image.style.display = there ? "block" : "none";
    hint.style.display = there ? "none" : "block";
    place(model.get("corners"));
  };
  const share = (event) => {
    const r = image.getBoundingClientRect();
    const at = [(event.clientX - r.left) / r.width, (event.clientY - r.top) / r.height];
    return at.map((v) => Math.min(1, Math.max(0, v)));
  };
  const take = async (event, files) => {
    event.preventDefault();
    event.stopPropagation();
    const file = [...files].find((f) => f.type.startsWith("image/"));
    send(model, "given", { data: await asJpeg(file) });
  };

  el.onpointerdown = (event) => {
    el.focus({ preventScroll: true });
    if (event.button || !model.get("picture")) return;
    from = share(event);
    el.setPointerCapture(event.pointerId);
  };
  el.onpointermove = (event) => {
    if (from) place([...from, ...share(event)]);
  };
  el.onpointerup = (event) => {
    if (!from) return;
    send(model, "drawn", { corners: [...from, ...share(event)] });
    from = null;
  };
  el.onpointercancel = () => {
    from = null;
    draw();
  };
  el.addEventListener("paste", (event) => take(event, event.clipboardData.files));
  el.addEventListener("dragover", (event) => event.preventDefault());
  el.addEventListener("drop", (event) => take(event, event.dataTransfer.files));
  for (const what of ["picture", "corners"]) model.on(`change:${what}`, draw);
  model.on("msg:custom", draw);
  draw();
}

export default { render };
