// Keys and the lasso of the picker: it listens to the box around the mesh, and sends
// {key: name} or {outline: [[x, y], ...] in shares of the canvas, erase: was ctrl held}.
const FIELDS = "input, textarea, select";

function nameOf(event) {
  const letter = event.key.toLowerCase();
  const shift = event.shiftKey && /^[a-z]$/.test(letter);
  const ctrl = event.ctrlKey || event.metaKey;
  return (ctrl ? "ctrl+" : "") + (shift ? "shift+" : "") + letter;
}

function sheetOver(canvas) {
  const parent = canvas.parentElement;
  const place = {
    position: "absolute",
    left: `${canvas.offsetLeft}px`,
    top: `${canvas.offsetTop}px`,
    width: `${canvas.clientWidth}px`,
    height: `${canvas.clientHeight}px`,
    cursor: "crosshair",
    touchAction: "none",
  };
  parent.style.position = "relative";
  parent.insertAdjacentHTML(
    "beforeend",
    '<svg><polygon fill="#cc2f7b22" stroke="#cc2f7b" stroke-width="2" points=""/></svg>',
  );
  Object.assign(parent.lastElementChild.style, place);
  return parent.lastElementChild;
}

function render({ model, el }) {
  const box = () => el.closest(".hmr-picker");

  const press = (event) => {
    if (event.target.matches(FIELDS)) return;
    const name = nameOf(event);
    if (!model.get("listen").includes(name)) return;
    event.preventDefault();
    event.stopPropagation();
    model.send({ key: name });
  };

  const takeFocus = (event) => {
    if (!event.target.closest(FIELDS)) box().focus({ preventScroll: true });
  };

  const attach = (tries) => {
    if (!box()) {
      if (tries) requestAnimationFrame(() => attach(tries - 1));
      return;
    }
    box().tabIndex = 0;
    box().style.outline = "none";
    box().dataset.lmSuppressShortcuts = "true";
    box().addEventListener("keydown", press);
    for (const what of ["pointerdown", "click"])
      box().addEventListener(what, takeFocus, true);
  };

  let sheet = null;
  const lasso = () => {
    sheet?.remove();
    sheet = null;
    const canvas = box()?.querySelector("canvas");
    if (!model.get("lasso") || !canvas) return;
    sheet = sheetOver(canvas);
    const line = sheet.firstElementChild;
    let points = null;
    const where = (event) => {
      const r = sheet.getBoundingClientRect();
      return [(event.clientX - r.left) / r.width, (event.clientY - r.top) / r.height];
    };
    sheet.onpointerdown = (event) => {
      points = [where(event)];
      sheet.setPointerCapture(event.pointerId);
    };
    sheet.onpointermove = (event) => {
      if (!points) return;
      points.push(where(event));
      const px = points.map(([x, y]) => [x * sheet.clientWidth, y * sheet.clientHeight]);
      line.setAttribute("points", px.map((p) => p.join(",")).join(" "));
    };
    sheet.onpointerup = (event) => {
      if (points) model.send({ outline: points, erase: event.ctrlKey || event.metaKey });
      points = null;
    };
  };

  model.on("change:lasso", lasso);
  attach(600);
}
export default { render };
