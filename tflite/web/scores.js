// Class scores for people: the best classes with their shares.

/**
 * Returns the classes with the highest scores.
 *
 * @param output The output of a network: probabilities, or logits.
 * @param {string[]} labels The names of the classes. Classes without a name are numbered.
 * @param {number} count How many classes.
 * @returns `{scores, meaning}`: `[{label, share}]`, best first, and what the shares are.
 */
export function ranked(output, labels, count) {
  const values = Array.from(output);
  const isProbability = looksLikeProbabilities(values);
  const shares = isProbability ? values : softmax(values);
  const order = values.map((_, index) => index).sort((a, b) => values[b] - values[a]);
  return {
    scores: order.slice(0, count).map((index) => ({
      label: labels[index] ?? `class ${index}`,
      share: shares[index],
    })),
    meaning: isProbability ? "Probabilities" : "Softmax of the outputs",
  };
}

// An int8 softmax rounds each probability to 1/256, so the sum is only close to 1.
function looksLikeProbabilities(values) {
  const sum = values.reduce((total, value) => total + value, 0);
  const tolerance = 0.01 + values.length / 512;
  return values.every((value) => value >= 0 && value <= 1) && Math.abs(sum - 1) <= tolerance;
}

function softmax(values) {
  const most = Math.max(...values);
  const powers = values.map((value) => Math.exp(value - most));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => power / sum);
}
