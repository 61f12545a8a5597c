// Frames come ahead of time with the moment at which each is due on the server's clock. They are decoded at once and
// shown when due; a line that is now and then late gets a small reserve, so that motion stays even.

const SLOWEST_RESERVE = 400; // ms
const WAITING = 48; // frames kept at most; older ones are dropped
const EARLY = 12; // ms before a frame is due that the browser is asked for its next repaint
const FORGET = 5000; // ms after which the fastest delivery is measured anew

export class Screen {
  /** canvases: the dream's, and the street's. shown(header, now, skipped) is called for every frame that appears. */
  constructor(canvases, shown) {
    this.canvases = canvases;
    this.contexts = canvases.map((canvas) => canvas.getContext("2d", { alpha: false }));
    this.shown = shown;
    this.asleep = true; // neither a timer nor a repaint is on its way
    this.reset();
  }

  reset() {
    this.waiting = [];
    this.offset = this.recent = Infinity; // least of (time received here - time sent there): now, and since `renewed`
    this.renewed = 0;
    this.reserve = 10;
    this.world = -1;
  }

  /** Decodes and queues a frame; resolves to how many ms late it came (negative: ahead of time). */
  async add(header, pictures, receivedAt) {
    const bitmaps = await Promise.all(pictures.map((picture) => createImageBitmap(picture)));
    if (header.world !== this.world) {
      this.world = header.world; // a new beginning: what is still queued belongs to the world before
      this.waiting = [];
    }
    const delay = receivedAt - header.sent;
    this.recent = Math.min(this.recent, delay);
    this.offset = Math.min(this.offset, delay);
    if (receivedAt - this.renewed > FORGET) {
      this.offset = this.recent;
      this.recent = delay;
      this.renewed = receivedAt;
    }
    const late = performance.now() - (header.due + this.offset + this.reserve);
    if (late > 0) this.reserve = Math.min(SLOWEST_RESERVE, this.reserve + late);
    else this.reserve = Math.max(10, this.reserve * 0.998);
    this.waiting.push({ header, bitmaps });
    if (this.waiting.length > WAITING) this.waiting.shift();
    if (this.asleep) this.plan();
    return late;
  }

  due({ header }) {
    return header.due + this.offset + this.reserve;
  }

  // asks for a repaint only when one is needed: sixty a second for nothing are dear where the page has no graphics card
  plan() {
    this.asleep = !this.waiting.length;
    if (this.asleep) return;
    const repaint = () => requestAnimationFrame((now) => this.draw(now));
    const left = this.due(this.waiting[0]) - performance.now() - EARLY;
    if (left > 0) setTimeout(repaint, left);
    else repaint();
  }

  draw(now) {
    let due = 0;
    while (due < this.waiting.length && this.due(this.waiting[due]) <= now + 4) due++;
    if (due) {
      const [{ header, bitmaps }] = this.waiting.splice(0, due).slice(-1);
      bitmaps.forEach((bitmap, i) => this.paint(i, bitmap));
      this.shown(header, now, due - 1);
    }
    this.plan();
  }

  // small pictures are enlarged by a smooth filter here, once, and only scaled a little further by the page
  paint(i, bitmap) {
    const canvas = this.canvases[i];
    const zoom = Math.max(1, Math.round(768 / bitmap.width));
    const [width, height] = [bitmap.width * zoom, bitmap.height * zoom];
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    const context = this.contexts[i];
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, 0, 0, width, height);
    bitmap.close();
  }
}
