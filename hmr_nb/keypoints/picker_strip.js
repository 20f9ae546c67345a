// The strip of poses under the mesh: a still, the keypoint's dot, a tick and a name each.
function render({ model, el }) {
  el.classList.add("hmr-strip");

  const card = (name) => {
    const button = document.createElement("button");
    button.className = name === model.get("current") ? "here" : "";
    button.title = name;
    const src = model.get("pictures")[name];
    if (src) {
      const picture = document.createElement("img");
      button.append(Object.assign(picture, { src, alt: name, draggable: false }));
    }
    for (const [x, y] of model.get("dots")[name] ?? []) {
      const dot = document.createElement("i");
      dot.style.left = `${2 + 78 * x}px`;
      dot.style.top = `${2 + 78 * y}px`;
      button.append(dot);
    }
    const label = document.createElement("span");
    label.textContent = (model.get("ticks").includes(name) ? "\u2713 " : "") + name;
    button.append(label);
    // the keys stay with the picker: this button will be drawn anew
    button.onmousedown = (event) => event.preventDefault();
    button.onclick = () => {
      model.set("current", name);
      model.save_changes();
    };
    return button;
  };

  const draw = () => el.replaceChildren(...model.get("names").map(card));
  for (const what of ["names", "pictures", "dots", "ticks", "current"])
    model.on(`change:${what}`, draw);
  draw();
}
export default { render };
