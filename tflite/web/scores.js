// Class scores for people: the best classes with their shares.

/**
 * Returns the classes with the highest scores.
 *
 * @param output The output of a network. Values from 0 to 1 are shown as they are, as of a softmax or
 *     a sigmoid; others are taken as logits.
 * @param {string[]} labels The names of the classes. Classes without a name are numbered.
 * @param {number} count How many classes.
 * @returns `{scores, meaning}`: `[{label, share}]`, best first, and what the shares are.
 */
export function ranked(output, labels, count) {
  const values = Array.from(output);
  const isShare = values.every((value) => value >= 0 && value <= 1);
  const shares = isShare ? values : softmax(values);
  const order = values.map((_, index) => index).sort((a, b) => values[b] - values[a]);
  return {
    scores: order.slice(0, count).map((index) => ({
      label: labels[index] ?? `class ${index}`,
      share: shares[index],
    })),
    meaning: isShare ? "Outputs" : "Softmax of the outputs",
  };
}

function softmax(values) {
  const most = Math.max(...values);
  const powers = values.map((value) => Math.exp(value - most));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => power / sum);
}
