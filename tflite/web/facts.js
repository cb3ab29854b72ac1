// Facts about a file and a result, in words.

/** Returns what a person should know about a file. */
export function fileText({ name, size }, { facts, input, routing, profiles, labels }) {
  const parts = [
    name,
    `${size.toLocaleString("en")} bytes`,
    facts ? `target ${facts.target}` : "not from dqmq_tf",
    `${input.width} × ${input.height} ${input.color}`,
    input.isStated ? null : "fed with pixels from 0 to 255",
    profiles ? `${profiles.length} profiles, chosen by ${routing}` : bits(facts?.bits),
    labels.length ? null : "classes without names",
  ];
  return parts.filter(Boolean).join(" · ");
}

/** Returns the profile of an adaptive file, or null. */
export function profileText({ profiles }, profile) {
  if (profile === null) return null;
  const widths = bits(profiles[profile].bits);
  return `${profile} (of ${profiles.length})${widths ? `: ${widths}` : ""}`;
}

/** Returns what an `Exposure` layer did, or null. */
export function exposureText(exposure) {
  return exposure && `gain ${exposure.gain.toFixed(2)}, black ${exposure.black.toFixed(1)}`;
}

/** Returns the range of bit-widths of `{layer: bits}`, or null. */
function bits(widths) {
  const values = Object.values(widths ?? {});
  if (!values.length) return null;
  const [low, high] = [Math.min(...values), Math.max(...values)];
  return low === high ? `weights of ${low} bits` : `weights of ${low} to ${high} bits`;
}
