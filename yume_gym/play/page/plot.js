// The last half minute: delay from key to picture (dots), time a block took (line), frames a second (line).

const SPAN = 30000; // ms

export class Plot {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.style = getComputedStyle(document.documentElement);
    this.delays = [];
    this.blocks = [];
    this.rates = [];
  }

  add(kind, value, now = performance.now()) {
    this[kind].push([now, value]);
    while (this[kind][0][0] < now - SPAN) this[kind].shift();
  }

  /** fps: what the world should run at; blockTime: ms that one block may take. */
  draw(fps, blockTime, now = performance.now()) {
    const { canvas, context } = this;
    const ratio = devicePixelRatio;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!width) return;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    context.scale(ratio, ratio);
    const top = Math.max(2 * blockTime, ...this.delays.map((p) => p[1]), ...this.blocks.map((p) => p[1])) * 1.1;
    const x = (time) => width * (1 - (now - time) / SPAN);
    const y = (value) => height - 4 - (value / top) * (height - 18);
    const colour = (name) => this.style.getPropertyValue(name);

    context.font = "10px system-ui, 'DejaVu Sans', sans-serif";
    context.strokeStyle = colour("--line");
    context.fillStyle = colour("--soft");
    context.setLineDash([3, 4]);
    this.line([[now - SPAN, blockTime], [now, blockTime]], x, y);
    context.setLineDash([]);
    context.fillText(`${Math.round(blockTime)} ms: one block`, 6, y(blockTime) - 4);

    context.lineWidth = 1.5;
    context.strokeStyle = colour("--fps");
    this.line(this.rates, x, (rate) => 8 + (1 - Math.min(1.2, rate / fps) / 1.2) * (height - 14));
    context.strokeStyle = colour("--block");
    this.line(this.blocks, x, y);
    context.fillStyle = colour("--delay");
    for (const [time, value] of this.delays) {
      context.beginPath();
      context.arc(x(time), y(value), 2.5, 0, 7);
      context.fill();
    }
  }

  line(points, x, y) {
    this.context.beginPath();
    points.forEach(([time, value], i) => this.context[i ? "lineTo" : "moveTo"](x(time), y(value)));
    this.context.stroke();
  }
}
