"use strict";
// The viewer of one report. NiiVue draws scan and map; the outlines of mask, expert mask and chosen part are drawn as
// lines on a second canvas, at the screen's own resolution. All volumes lie on one grid in RAS order.
(async () => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const SLICES = [
    { across: 0, up: 1, through: 2 }, // axial
    { across: 0, up: 2, through: 1 }, // coronal
    { across: 1, up: 2, through: 0 }, // sagittal
  ];
  const ALL = 3;
  const [nx, ny, nz] = data.shape;

  // Light and dark.
  const root = document.documentElement;
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  byId("theme").hidden = false;
  byId("theme").addEventListener("click", () => {
    const dark = root.dataset.theme === "auto" ? prefersDark.matches : root.dataset.theme === "dark";
    root.dataset.theme = dark ? "light" : "dark";
  });

  const gl = document.createElement("canvas").getContext("webgl2");
  if (!gl || Math.max(...data.shape) > gl.getParameter(gl.MAX_3D_TEXTURE_SIZE)) return;
  byId("viewer").hidden = false;
  byId("no-viewer").hidden = true;
  // Browsers keep what was chosen before a reload; the page begins afresh.
  for (const input of document.querySelectorAll("#viewer input")) {
    if (input.type === "range") input.value = input.defaultValue;
    else input.checked = input.defaultChecked;
  }

  const scene = byId("scene");
  const lines = byId("lines");
  const nv = new niivue.Niivue({
    backColor: [0, 0, 0, 1],
    crosshairWidth: 0, // drawn with the lines
    fontColor: [0.72, 0.77, 0.83, 1],
    fontMinPx: 15,
    isColorbar: false,
    isOrientCube: false,
    isRadiologicalConvention: true,
    sagittalNoseLeft: true,
    isForceMouseClickToVoxelCenters: true,
    dragAndDropEnabled: false,
    dragMode: 0,
    showAllOrientationMarkers: true,
    scrollRequiresFocus: true,
    loadingText: "",
    logLevel: "error",
  });
  const images = new Map();
  const ofLesions = []; // of whose maps the last few stay unpacked
  async function image(volume, options, passing = false) {
    if (!images.has(volume)) {
      if (passing && ofLesions.push(volume) > 8) images.delete(ofLesions.shift());
      const loaded = await niivue.NVImage.loadFromBase64({ base64: volume.base64, name: "volume.nii.gz", ...options });
      images.set(volume, loaded);
    }
    return images.get(volume);
  }

  const state = { method: 0, channel: 0, sequence: data.sequence, chosen: null, lesion: data.lesion };
  let shown = {}; // what is on the screen: scan, map, mask, truth, parts as arrays in RAS order

  const method = () => data.methods[state.method];
  // A page of lesions has maps per lesion; those of some lesions lie elsewhere.
  const source = () => (data.lesions ? method().lesions[state.lesion] || method().empty : method());
  const map = () => source().channels[state.channel];
  const offset = (voxel) => voxel[0] + nx * (voxel[1] + ny * voxel[2]);
  const minus = (text) => String(text).replace("-", "−");
  const short = (value) => minus(Number(value.toPrecision(3)).toString());
  const world = (v) => data.affine.slice(0, 3).map((row) => row[0] * v[0] + row[1] * v[1] + row[2] * v[2] + row[3]);
  const voxelHere = () =>
    data.shape.map((size, axis) => Math.min(size - 1, Math.max(0, Math.floor(nv.scene.crosshairPos[axis] * size))));

  function goTo(voxel) {
    nv.scene.crosshairPos = voxel.map((v, axis) => (v + 0.5) / data.shape[axis]);
    nv.drawScene();
    readOut();
  }

  function value(volume, code) {
    if (code === volume.background) return "outside";
    const number = code * volume.slope + volume.intercept;
    const step = Math.abs(volume.slope);
    const digits = step >= 1 ? 0 : Math.min(4, Math.ceil(-Math.log10(step)));
    return (volume.clipped !== null && code >= volume.clipped ? "≥ " : "") + minus(number.toFixed(digits));
  }

  function readOut() {
    if (!shown.scan) return;
    const voxel = voxelHere();
    const at = offset(voxel);
    const sequence = shown.sequence;
    byId("at-mm").textContent = world(voxel).map((v) => minus(v.toFixed(1))).join(" ") + " mm";
    byId("at-sequence-name").textContent = sequence.name;
    byId("at-scan").textContent = value(sequence, shown.scan[at]);
    byId("at-map").textContent = short(shown.map[at] * shown.layer.slope + shown.layer.intercept);
    const rank = shown.parts ? shown.method.ranks[shown.parts[at]] : undefined;
    byId("at-part").textContent = rank ? "rank " + rank[0] : "–";
    const inside = [];
    if (shown.mask && shown.mask[at]) inside.push("mask");
    if (shown.lesions && shown.lesions[at]) inside.push("lesion " + shown.lesions[at]);
    if (shown.truth && shown.truth[at]) inside.push("expert");
    byId("at-inside").textContent = inside.join(" + ") || "–";
  }

  // Outlines: walk along the edges between voxels, then cut the corners half-way.
  const kept = new Map();
  function outlines(name, array, accepts, kind, index) {
    const key = [name, kind, index].join(" ");
    if (kept.has(key)) return kept.get(key);
    const { across, up, through } = SLICES[kind];
    const wide = data.shape[across];
    const high = data.shape[up];
    const step = [1, nx, nx * ny];
    const inside = (x, y) =>
      x >= 0 && y >= 0 && x < wide && y < high && accepts(array[x * step[across] + y * step[up] + index * step[through]]);
    const next = new Map();
    const edge = (x0, y0, x1, y1) => {
      const start = y0 * (wide + 1) + x0;
      if (!next.has(start)) next.set(start, []);
      next.get(start).push(y1 * (wide + 1) + x1);
    };
    for (let y = 0; y < high; y++) {
      for (let x = 0; x < wide; x++) {
        if (!inside(x, y)) continue;
        if (!inside(x, y - 1)) edge(x, y, x + 1, y);
        if (!inside(x + 1, y)) edge(x + 1, y, x + 1, y + 1);
        if (!inside(x, y + 1)) edge(x + 1, y + 1, x, y + 1);
        if (!inside(x - 1, y)) edge(x, y + 1, x, y);
      }
    }
    const loops = [];
    for (const [start, ends] of next) {
      while (ends.length) {
        const corners = [start];
        for (let at = ends.pop(); at !== start; at = next.get(at).pop()) corners.push(at);
        loops.push(
          corners.map((corner, i) => {
            const other = corners[(i + 1) % corners.length];
            const x = ((corner % (wide + 1)) + (other % (wide + 1))) / 2;
            const y = (Math.floor(corner / (wide + 1)) + Math.floor(other / (wide + 1))) / 2;
            return [x / wide, y / high];
          }),
        );
      }
    }
    if (kept.size > 600) kept.clear();
    kept.set(key, loops);
    return loops;
  }

  function drawCrosshair(pen, kind, voxel, left, top, wide, high, ratio) {
    const { across, up } = SLICES[kind];
    const x = Math.round(left + (1 - (voxel[across] + 0.5) / data.shape[across]) * wide) + 0.5;
    const y = Math.round(top + (1 - (voxel[up] + 0.5) / data.shape[up]) * high) + 0.5;
    const gap = 9 * ratio; // the place itself stays in sight
    pen.beginPath();
    for (const [x0, y0, x1, y1] of [
      [left, y, Math.max(left, x - gap), y],
      [Math.min(left + wide, x + gap), y, left + wide, y],
      [x, top, x, Math.max(top, y - gap)],
      [x, Math.min(top + high, y + gap), x, top + high],
    ]) {
      pen.moveTo(x0, y0);
      pen.lineTo(x1, y1);
    }
    pen.setLineDash([]);
    pen.lineWidth = ratio;
    pen.strokeStyle = "rgb(255 255 255 / 55%)";
    pen.stroke();
  }

  function drawLines() {
    if (lines.width !== scene.width || lines.height !== scene.height) {
      lines.width = scene.width;
      lines.height = scene.height;
    }
    const pen = lines.getContext("2d");
    pen.clearRect(0, 0, lines.width, lines.height);
    if (!shown.scan) return;
    const ratio = Math.max(1, scene.width / Math.max(1, scene.clientWidth));
    const voxel = voxelHere();
    const drawn = [];
    if (state.chosen !== null && shown.parts) {
      const label = state.chosen;
      drawn.push(["part " + shown.number + " " + label, shown.parts, (v) => v === label, "#ffd166", [1.5, 2.5], false]);
    }
    const fill = byId("fill").checked;
    if (shown.truth && byId("show-truth").checked) {
      drawn.push(["truth", shown.truth, (v) => v > 0, data.colours.truth, [6, 4], fill]);
    }
    if (shown.mask && byId("show-mask").checked) {
      drawn.push(["mask " + shown.number, shown.mask, (v) => v > 0, data.colours.mask, [], fill]);
    }
    if (shown.lesions && byId("show-mask").checked) {
      const number = shown.lesion;
      drawn.push(["not " + number, shown.lesions, (v) => v > 0 && v !== number, data.colours.mask, [], false, true]);
      drawn.push(["lesion " + number, shown.lesions, (v) => v === number, data.colours.mask, [], fill]);
    }
    for (const tile of nv.screenSlices) {
      const kind = tile.axCorSag;
      if (kind > 2) continue;
      const [left, top, signed, high] = tile.leftTopWidthHeight;
      const wide = Math.abs(signed);
      drawCrosshair(pen, kind, voxel, left, top, wide, high, ratio);
      for (const [name, array, accepts, colour, dashes, filled, faint] of drawn) {
        pen.beginPath();
        for (const loop of outlines(name, array, accepts, kind, voxel[SLICES[kind].through])) {
          loop.forEach(([x, y], i) => {
            // Radiological, nose to the left: the axis across runs from right to left.
            const place = [left + (1 - x) * wide, top + (1 - y) * high];
            if (i) pen.lineTo(...place);
            else pen.moveTo(...place);
          });
          pen.closePath();
        }
        pen.lineJoin = "round";
        if (filled) {
          pen.globalAlpha = 0.35;
          pen.fillStyle = colour;
          pen.fill("evenodd");
          pen.globalAlpha = 1;
        }
        pen.setLineDash([]);
        pen.strokeStyle = "rgb(0 0 0 / 55%)";
        pen.lineWidth = 3.6 * ratio;
        if (!faint) pen.stroke();
        pen.setLineDash(dashes.map((d) => d * ratio));
        pen.strokeStyle = colour;
        pen.globalAlpha = faint ? 0.55 : 1;
        pen.lineWidth = (faint ? 1 : 1.8) * ratio;
        pen.stroke();
        pen.globalAlpha = 1;
      }
    }
  }
  const drawScene = nv.drawScene.bind(nv);
  nv.drawScene = () => {
    const result = drawScene();
    drawLines();
    return result;
  };
  nv.onLocationChange = readOut;

  // What is shown.
  // Colours are computed here, by the tables and the fading of the static pictures: alpha grows with the square of the
  // value up to the threshold. NiiVue gets them as RGBA, since its own colour maps know no such alpha.
  const RGBA = 2304;
  function colourMap() {
    const { peak, diverging, slope, intercept } = shown.layer;
    const share = byId("threshold").value / 1000;
    const fade = byId("fade").checked;
    const tableOf = (name) => data.tables[name].map(([r, g, b]) => (r | (g << 8) | (b << 16)) >>> 0);
    const positive = tableOf(diverging ? "positive" : "unsigned");
    const negative = tableOf("negative");
    const alphas = Array.from({ length: 1025 }, (_, i) => {
      const part = i / 1024;
      if (!i) return 0;
      return part >= share ? 255 : fade ? Math.round(255 * (part / share) ** 2) : 0;
    });
    const painted = new Uint32Array(shown.map.length).fill(positive[0]);
    for (let i = 0; peak > 0 && i < painted.length; i++) {
      const value = shown.map[i] * slope + intercept;
      const size = Math.min(1, Math.abs(value) / peak);
      if (!size || (value < 0 && !diverging)) continue;
      const colour = (value < 0 ? negative : positive)[Math.floor(size * 255)];
      painted[i] = (colour | (alphas[Math.ceil(size * 1024 - 1e-6)] << 24)) >>> 0;
    }
    const overlay = nv.volumes[1];
    overlay.img = new Uint8Array(painted.buffer);
    overlay.opacity = byId("opacity").value / 100;
    nv.updateGLVolume();
    drawLines();
  }
  // A slider speaks more often than a large scan can be coloured: once per frame is enough.
  let painting = false;
  function colourSoon() {
    if (painting) return;
    painting = true;
    requestAnimationFrame(() => {
      painting = false;
      if (shown.map) colourMap();
    });
  }
  const thresholdValue = () => (byId("threshold").value / 1000) * map().peak;

  function describe() {
    const share = byId("threshold").value / 10;
    byId("threshold-value").textContent = short(thresholdValue()) + " (" + minus(share.toFixed(0)) + " % of peak), " + method().unit;
    byId("threshold").setAttribute("aria-valuetext", short(thresholdValue()) + " " + method().unit);
    byId("opacity-value").textContent = byId("opacity").value + " %";
  }

  function setScale() {
    const scale = map();
    byId("bar").style.background = "linear-gradient(90deg, " + scale.gradient + ")";
    byId("bar").parentElement.classList.toggle("half", scale.diverging);
    byId("bar-low").textContent = scale.diverging ? short(-scale.peak) : "0";
    byId("bar-middle").textContent = scale.diverging ? "0" : "";
    byId("bar-high").textContent = short(scale.peak);
    byId("threshold").value = scale.peak ? Math.round((1000 * scale.threshold) / scale.peak) : 0;
    describe();
  }

  let turn = 0;
  async function show() {
    const mine = ++turn;
    const sequence = data.sequences[state.sequence];
    const one = method();
    const layer = map();
    const number = state.method;
    const labels = { name: "labels.nii.gz" };
    const [scan, overlay, mask, truth, parts, lesions] = await Promise.all([
      image(sequence, { colormap: "gray", cal_min: sequence.low, cal_max: sequence.high }),
      image(layer, {}, Boolean(data.lesions)),
      one.mask && image(one.mask, labels),
      data.truth && image(data.truth, labels),
      one.parts && image(one.parts, labels),
      data.lesions && image(data.lesions, labels),
    ]);
    if (mine !== turn) return;
    if (!overlay.codes) {
      overlay.codes = overlay.img;
      Object.assign(overlay.hdr, { datatypeCode: RGBA, numBitsPerVoxel: 32, scl_slope: 1, scl_inter: 0 });
    }
    shown = {
      method: one,
      number,
      layer,
      sequence,
      scan: scan.img,
      map: overlay.codes,
      mask: mask && mask.img,
      truth: truth && truth.img,
      parts: parts && parts.img,
      lesions: lesions && lesions.img,
      lesion: state.lesion,
    };
    const place = [...nv.scene.crosshairPos];
    nv.volumes = [scan, overlay];
    nv.back = scan;
    nv.overlays = [overlay];
    colourMap();
    nv.scene.crosshairPos = place;
    nv.drawScene();
    byId("mask-toggle").hidden = !one.mask && !lesions;
    readOut();
  }

  // A lesion is chosen in the lists of all methods.
  function mark() {
    for (const row of document.querySelectorAll(".ranks tr[data-lesion]")) {
      if (Number(row.dataset.lesion) === state.lesion) row.setAttribute("aria-current", "true");
      else row.removeAttribute("aria-current");
    }
  }
  async function chooseLesion(row) {
    state.lesion = Number(row.dataset.lesion);
    mark();
    setScale();
    await show();
    goTo(row.dataset.voxel.split(" ").map(Number));
  }

  function choose(row) {
    if (row.dataset.lesion) {
      chooseLesion(row);
      return;
    }
    for (const other of document.querySelectorAll(".ranks tr[aria-current]")) other.removeAttribute("aria-current");
    state.chosen = null;
    if (row.dataset.label) {
      row.setAttribute("aria-current", "true");
      state.chosen = Number(row.dataset.label);
    }
    goTo(row.dataset.voxel.split(" ").map(Number));
  }

  function offerChannels() {
    const box = byId("channels");
    for (const label of box.querySelectorAll("label")) label.remove();
    box.hidden = source().channels.length < 2;
    source().channels.forEach((channel, index) => {
      const label = document.createElement("label");
      const input = document.createElement("input");
      const text = document.createElement("span");
      input.type = "radio";
      input.name = "channel";
      input.value = index;
      input.checked = index === 0;
      text.textContent = channel.name;
      label.append(input, text);
      box.append(label);
    });
  }

  // Where there is the width for it the axial slice takes the whole height; beside it coronal and sagittal at one
  // scale, the 3D view below them. Tiles have the proportions of their slices, so that nothing is letterboxed and
  // outlines need no more than a tile's box.
  function layOut() {
    const chosen = document.querySelector("input[name=view]:checked");
    const kind = data.flat === null ? Number(chosen.value) : { 2: 0, 1: 1, 0: 2 }[data.flat];
    const [wide, high] = [scene.clientWidth, scene.clientHeight];
    if (wide < 100 || high < 100) return; // hidden, as in print
    const mm = [0, 1, 2].map((axis) => data.shape[axis] * Math.hypot(...data.affine.slice(0, 3).map((row) => row[axis])));
    const tile = (sliceType, left, top, width, height) => {
      const size = sliceType < 3 ? [mm[SLICES[sliceType].across], mm[SLICES[sliceType].up]] : [width, height];
      const scale = Math.min(width / size[0], height / size[1]);
      const [w, h] = size.map((length) => length * scale);
      const position = [(left + (width - w) / 2) / wide, (top + (height - h) / 2) / high, w / wide, h / high];
      return { sliceType, position };
    };
    const pad = 8;
    if (kind !== ALL) {
      nv.setCustomLayout([tile(kind, pad, pad, wide - 2 * pad, high - 2 * pad)]);
      return;
    }
    if (wide < 1.25 * high) {
      // A narrow window: two by two.
      const [w, h] = [wide / 2 - 1.5 * pad, high / 2 - 1.5 * pad];
      const [x, y] = [wide / 2 + pad / 2, high / 2 + pad / 2];
      nv.setCustomLayout([tile(0, pad, pad, w, h), tile(1, x, pad, w, h), tile(2, pad, y, w, h), tile(4, x, y, w, h)]);
      return;
    }
    const first = Math.min(0.5 * wide, ((high - 2 * pad) * mm[0]) / mm[1] + 2 * pad);
    const rest = wide - first - pad;
    const scale = Math.min((rest - 5 * pad) / (mm[0] + mm[1]), (0.5 * high) / mm[2]);
    const top = mm[2] * scale;
    const gap = (rest - (mm[0] + mm[1]) * scale) / 3;
    nv.setCustomLayout([
      tile(0, pad, pad, first - 2 * pad, high - 2 * pad),
      tile(1, first + gap, pad, mm[0] * scale, top),
      tile(2, first + 2 * gap + mm[0] * scale, pad, mm[1] * scale, top),
      tile(4, first, top + 2 * pad, rest, high - top - 3 * pad),
    ]);
  }

  // Controls.
  for (const row of document.querySelectorAll("[data-voxel]")) {
    row.addEventListener("click", () => choose(row));
    row.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        choose(row);
      }
    });
  }
  document.addEventListener("change", async (event) => {
    const { name, value: chosen } = event.target;
    if (name === "sequence") state.sequence = Number(chosen);
    else if (name === "channel") state.channel = Number(chosen);
    else if (name === "method") {
      Object.assign(state, { method: Number(chosen), channel: 0, chosen: null });
      for (const row of document.querySelectorAll(".ranks tr[aria-current]")) row.removeAttribute("aria-current");
      mark();
      for (const box of document.querySelectorAll(".ranks")) box.hidden = box.dataset.method !== chosen;
      offerChannels();
    } else if (name === "view") {
      layOut();
      return;
    } else return;
    if (name !== "sequence") setScale();
    await show();
  });
  for (const id of ["threshold", "opacity", "fade"]) {
    byId(id).addEventListener("input", () => {
      describe();
      colourSoon();
    });
  }
  for (const id of ["show-mask", "show-truth", "fill"]) {
    const box = byId(id);
    if (box) box.addEventListener("change", drawLines);
  }
  const KEYS = {
    ArrowLeft: [0, 1],
    ArrowRight: [0, -1],
    ArrowUp: [1, 1],
    ArrowDown: [1, -1],
    PageUp: [2, 1],
    PageDown: [2, -1],
  };
  // Before NiiVue's own keys, which do other things than they say here.
  byId("stage").addEventListener(
    "keydown",
    (event) => {
      if (event.key === "Tab") return;
      event.stopPropagation();
      if (!(event.key in KEYS) || event.altKey || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      const [axis, step] = KEYS[event.key];
      const voxel = voxelHere();
      voxel[axis] = Math.min(data.shape[axis] - 1, Math.max(0, voxel[axis] + step));
      goTo(voxel);
    },
    true,
  );
  try {
    await nv.attachToCanvas(scene);
    nv.setScale(1.5); // of the 3D view
    new ResizeObserver(layOut).observe(scene);
    offerChannels();
    mark();
    setScale();
    await show();
    layOut();
    // From the side where there is most to see.
    nv.setRenderAzimuthElevation(method().start[0] < nx / 2 ? 235 : 125, 15);
    goTo(method().start);
    byId("loading").hidden = true;
    root.dataset.viewer = "ready";
  } catch (error) {
    byId("loading").textContent = "The viewer could not start: " + error.message + " The pictures below show the same map.";
    throw error;
  }
})();
