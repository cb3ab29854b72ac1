// Random numbers from a seed: the same seed degrades a picture in the same way.

const SMALL_RATE = 10;

/** Draws what the degradations need. A test passes an object that replays given numbers instead. */
export class Random {
  constructor(seed) {
    this.state = seed >>> 0;
  }

  /** Returns a number from 0 up to, but not including, 1 (Mulberry32). */
  next() {
    this.state = (this.state + 0x6d2b79f5) >>> 0;
    let bits = this.state;
    bits = Math.imul(bits ^ (bits >>> 15), bits | 1);
    bits ^= bits + Math.imul(bits ^ (bits >>> 7), bits | 61);
    return ((bits ^ (bits >>> 14)) >>> 0) / 2 ** 32;
  }

  uniform(count, low = 0, high = 1) {
    return Float32Array.from({ length: count }, () => low + (high - low) * this.next());
  }

  /** Returns standard normal numbers (Box and Muller). */
  normal(count) {
    const numbers = new Float32Array(count);
    for (let i = 0; i < count; i += 2) {
      const radius = Math.sqrt(-2 * Math.log(1 - this.next()));
      const angle = 2 * Math.PI * this.next();
      numbers[i] = radius * Math.cos(angle);
      if (i + 1 < count) numbers[i + 1] = radius * Math.sin(angle);
    }
    return numbers;
  }

  /** Returns a Poisson number for each rate. */
  poisson(rates) {
    return Float32Array.from(rates, (rate) => (rate < SMALL_RATE ? this.few(rate) : this.many(rate)));
  }

  // Counts uniform numbers until their product falls below exp(-rate) (Knuth).
  few(rate) {
    const limit = Math.exp(-rate);
    let count = 0;
    for (let product = this.next(); product > limit; product *= this.next()) count += 1;
    return count;
  }

  // Transformed rejection with squeeze, PTRS (Hörmann, "The transformed rejection method for
  // generating Poisson random variables", 1993).
  many(rate) {
    const b = 0.931 + 2.53 * Math.sqrt(rate);
    const a = -0.059 + 0.02483 * b;
    const inverseAlpha = 1.1239 + 1.1328 / (b - 3.4);
    const accepted = 0.9277 - 3.6224 / (b - 2);
    for (;;) {
      const u = this.next() - 0.5;
      const v = 1 - this.next();
      const spread = 0.5 - Math.abs(u);
      const count = Math.floor(((2 * a) / spread + b) * u + rate + 0.43);
      if (spread >= 0.07 && v <= accepted) return count;
      if (count < 0 || (spread < 0.013 && v > spread)) continue;
      const left = Math.log((v * inverseAlpha) / (a / spread ** 2 + b));
      if (left <= count * Math.log(rate) - rate - logFactorial(count)) return count;
    }
  }
}

// Stirling's series; the first numbers exactly.
function logFactorial(count) {
  if (count < 10) {
    let product = 1;
    for (let factor = 2; factor <= count; factor += 1) product *= factor;
    return Math.log(product);
  }
  const x = count + 1;
  const series = 1 / (12 * x) - 1 / (360 * x ** 3);
  return (x - 0.5) * Math.log(x) - x + 0.5 * Math.log(2 * Math.PI) + series;
}
