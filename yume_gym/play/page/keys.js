// Which of W A S D and the arrows are held, from the keyboard and from the crosses on the screen.

const CODES = {
  KeyW: "W", KeyA: "A", KeyS: "S", KeyD: "D", ArrowUp: "↑", ArrowLeft: "←", ArrowDown: "↓", ArrowRight: "→",
};
const CENTRE = 1 / 6; // of a cross's side: closer to its middle than this holds nothing in that direction

const isTyping = (target) => target instanceof HTMLInputElement;

export class Keys {
  /** changed([names held]) is called on every change; commands: {KeyR: function, ...} for keys that are pressed once. */
  constructor(pads, changed, commands) {
    this.changed = changed;
    this.keyboard = new Set();
    this.touches = new Map(); // pointer id -> names
    this.told = "";
    this.pads = pads;
    addEventListener("keydown", (event) => this.down(event, commands));
    addEventListener("keyup", (event) => this.keyboard.delete(CODES[event.code]) && this.tell());
    addEventListener("blur", () => this.release());
    document.addEventListener("visibilitychange", () => document.hidden && this.release());
    for (const pad of pads) this.listen(pad);
  }

  get held() {
    return [...new Set([...this.keyboard, ...[...this.touches.values()].flat()])];
  }

  down(event, commands) {
    if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target)) return;
    const name = CODES[event.code];
    const command = commands[event.code];
    const presses = event.target instanceof HTMLButtonElement && ["Space", "Enter"].includes(event.code); // the button's own keys
    if (presses || event.target.closest?.("summary, a, [role=button]")) return;
    if (name) {
      this.keyboard.add(name);
      this.tell();
    } else if (command && !event.repeat) command();
    if (name || command) event.preventDefault();
  }

  // a finger anywhere on a cross holds what lies in its direction, diagonals included, and slides without lifting
  listen(pad) {
    const names = [...pad.children].map((button) => button.dataset.key);
    const follow = (event) => {
      const box = pad.getBoundingClientRect();
      const x = (event.clientX - box.left) / box.width - 0.5;
      const y = (event.clientY - box.top) / box.height - 0.5;
      const [up, left, down, right] = names;
      const held = [];
      if (Math.abs(x) > CENTRE) held.push(x < 0 ? left : right);
      if (Math.abs(y) > CENTRE) held.push(y < 0 ? up : down);
      this.touches.set(event.pointerId, held);
      this.tell();
    };
    pad.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      pad.setPointerCapture(event.pointerId);
      follow(event);
    });
    pad.addEventListener("pointermove", (event) => this.touches.has(event.pointerId) && follow(event));
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
      pad.addEventListener(end, (event) => this.touches.delete(event.pointerId) && this.tell());
    }
    pad.addEventListener("contextmenu", (event) => event.preventDefault());
  }

  release() {
    this.keyboard.clear();
    this.touches.clear();
    this.tell();
  }

  tell() {
    const held = this.held;
    const text = held.join();
    if (text === this.told) return;
    this.told = text;
    for (const pad of this.pads) for (const button of pad.children) button.classList.toggle("held", held.includes(button.dataset.key));
    this.changed(held);
  }
}
