// What follows from a job as the server tells it. Pure functions, tested without a browser.

/** The job goes on by itself: it trains, or waits for its turn. */
export const isActive = ({ state }) => ["queued", "starting", "running"].includes(state);

/** A worker is at it. */
export const isTraining = ({ state }) => ["starting", "running"].includes(state);

/** It measures an erasure; all other jobs train one. */
export const isEvaluation = ({ kind }) => kind === "evaluation";

/** Nothing more will happen unless the user wants it. */
export const hasEnded = ({ state }) => ["completed", "failed", "cancelled"].includes(state);

/** As a list should show them: what trains, what waits (by `place` in the queue; one whose place is not known yet is the last), what could go on, what has ended (newest first). */
export function inOrder(jobs) {
  const rank = (job) => (isTraining(job) ? 0 : isActive(job) ? 1 : hasEnded(job) ? 3 : 2);
  const last = jobs.length;
  const waiting = (a, b) => (a.place ?? last) - (b.place ?? last) || a.created - b.created;
  const compare = (a, b) => (rank(a) === 1 ? waiting(a, b) : b.created - a.created);
  return [...jobs].sort((a, b) => rank(a) - rank(b) || compare(a, b) || (a.id < b.id ? 1 : -1));
}

/** Seconds until the last step, or undefined while that cannot be known. */
export function secondsLeft({ state, step, total, seconds_per_step: pace }) {
  return state === "running" && step && pace > 0 && total > step ? (total - step) * pace : undefined;
}

/**
 * The server's word on a job together with what events have told since: state.json is written once a second, events tell
 * every step, so an answer may be some steps late. Samples are kept where the answer has none.
 */
export function merged(known, told) {
  if (!known) return told;
  const same = known.state === told.state && known.attempt === told.attempt;
  const late = same && told.state === "running" && known.step > told.step;
  const { step, losses, seconds_per_step } = known;
  const place = told.state === "queued" ? (told.place ?? known.place) : undefined;
  return { ...known, ...told, place, ...(late && { step, losses, seconds_per_step }) };
}

/** Sample pictures without repetitions (a resumed job renders some again), by step, then by prompt and seed as told. */
export function picturesOf(samples) {
  const once = [...new Map(samples.map((sample) => [sample.file, sample])).values()];
  return once.sort((a, b) => a.step - b.step || (a.file < b.file ? -1 : 1));
}

/** Prompts without the words that all of them begin or end with. */
export function differences(prompts) {
  const split = prompts.map((prompt) => prompt.split(" "));
  const shortest = Math.min(...split.map(({ length }) => length));
  const shared = (word) => {
    let count = 0;
    while (count < shortest - 1 && split.every((words) => word(words, count) === word(split[0], count))) count++;
    return count;
  };
  if (split.length < 2) return prompts;
  const head = shared((words, i) => words[i]);
  const tail = Math.min(shared((words, i) => words.at(-1 - i)), shortest - 1 - head);
  return split.map((words) => words.slice(head, words.length - tail).join(" "));
}
