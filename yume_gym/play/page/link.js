// One WebSocket to the server, opened again when it breaks. The session's token is kept for this tab alone, so that a
// reload or a broken line comes back to the same world.

const KEPT = "yume.session";
const LONGEST_WAIT = 8000; // ms between two attempts
const FINAL = new Set([4001, 4003]); // closed for good: taken over by another tab, or refused

export class Link {
  /** handlers: message(object), frame(header, [Blob], receivedAt), state("connecting" | "live" | "lost" | "closed", reason). */
  constructor(handlers) {
    this.handlers = handlers;
    this.attempts = 0;
    this.open();
  }

  open() {
    this.handlers.state("connecting", "");
    const address = new URL("play", location.href);
    address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    address.search = "";
    const socket = new WebSocket(address);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => this.send({ type: "hello", session: sessionStorage.getItem(KEPT) });
    socket.onmessage = ({ data }) => (typeof data === "string" ? this.read(JSON.parse(data)) : this.unpack(data));
    socket.onclose = ({ code, reason }) => this.closed(code, reason);
    this.socket = socket;
  }

  get session() {
    return sessionStorage.getItem(KEPT);
  }

  send(message) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  read(message) {
    if (message.type === "welcome") {
      this.attempts = 0;
      sessionStorage.setItem(KEPT, message.session);
    }
    this.handlers.message(message);
  }

  // a frame: length of the header (uint16, big-endian), header (JSON), then the pictures one after another
  unpack(data) {
    const receivedAt = performance.now();
    const start = 2 + new DataView(data).getUint16(0);
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 2, start - 2)));
    let at = start;
    const pictures = header.sizes.map((size) => new Blob([new Uint8Array(data, at, ((at += size), size))], { type: "image/jpeg" }));
    this.handlers.frame(header, pictures, receivedAt);
  }

  closed(code, reason) {
    if (FINAL.has(code)) return this.handlers.state("closed", reason);
    this.handlers.state("lost", reason);
    const wait = Math.min(LONGEST_WAIT, 300 * 2 ** this.attempts++);
    setTimeout(() => this.open(), wait * (0.75 + Math.random() / 2));
  }
}
