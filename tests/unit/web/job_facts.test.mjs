// Pure functions over jobs as the server tells them.
import assert from "node:assert/strict";
import { test } from "node:test";
import { differences, hasEnded, inOrder, isActive, merged, picturesOf, secondsLeft } from "../../../web/job_facts.mjs";

const STATES = ["queued", "starting", "running", "paused", "interrupted", "completed", "failed", "cancelled"];

test("no state is both active and ended", () => {
  for (const state of STATES) assert.ok(!(isActive({ state }) && hasEnded({ state })));
  assert.deepEqual(STATES.filter((state) => !isActive({ state }) && !hasEnded({ state })), ["paused", "interrupted"]);
});

test("order: what trains, the queue in its order, what could go on, the ended ones newest first", () => {
  const jobs = STATES.flatMap((state, i) => [1, 2].map((n) => ({ id: `${state}${n}`, state, created: i + 10 * n })));
  assert.deepEqual(
    inOrder(jobs).map(({ id }) => id),
    [
      ...["running2", "starting2", "running1", "starting1", "queued1", "queued2"],
      ...["interrupted2", "paused2", "interrupted1", "paused1"],
      ...["cancelled2", "failed2", "completed2", "cancelled1", "failed1", "completed1"],
    ],
  );
});

test("order: waiting jobs by their place in the queue, those without one after them", () => {
  const job = (id, place, created) => ({ id, state: "queued", place, created });
  const jobs = [job("new", undefined, 9), job("second", 1, 1), job("first", 0, 5), job("older", undefined, 2)];
  assert.deepEqual(inOrder(jobs).map(({ id }) => id), ["first", "second", "older", "new"]);
});

test("a place in the queue lasts as long as the job waits", () => {
  const waiting = { id: "a", state: "queued", place: 2 };
  assert.equal(merged(waiting, { id: "a", state: "queued" }).place, 2);
  assert.equal(merged(waiting, { id: "a", state: "queued", place: 0 }).place, 0);
  assert.equal(merged(waiting, { id: "a", state: "running" }).place, undefined);
});

test("time left is told only while it can be known", () => {
  const job = { state: "running", step: 50, total: 200, seconds_per_step: 0.5 };
  assert.equal(secondsLeft(job), 75);
  for (const change of [{ state: "paused" }, { step: 0 }, { seconds_per_step: null }, { step: 200 }])
    assert.equal(secondsLeft({ ...job, ...change }), undefined);
});

test("an answer that is late does not turn the step back; a resumed job may", () => {
  const known = { id: "a", state: "running", attempt: 1, step: 70, losses: { esd: 1 }, samples: [1] };
  const late = merged(known, { id: "a", state: "running", attempt: 1, step: 65, losses: { esd: 2 }, message: "" });
  assert.deepEqual([late.step, late.losses, late.samples, late.message], [70, { esd: 1 }, [1], ""]);
  assert.equal(merged(known, { ...known, attempt: 2, step: 50 }).step, 50);
  assert.equal(merged(known, { ...known, state: "paused", step: 69 }).step, 69);
  assert.equal(merged(undefined, known), known);
});

test("a picture that was rendered again appears once, in order of steps", () => {
  const samples = [
    { file: "s/step-000010-p0", step: 10 },
    { file: "s/step-000000-p1", step: 0 },
    { file: "s/step-000000-p0", step: 0 },
    { file: "s/step-000010-p0", step: 10, again: true },
  ];
  assert.deepEqual(
    picturesOf(samples).map(({ file, again }) => [file, again]),
    [["s/step-000000-p0", undefined], ["s/step-000000-p1", undefined], ["s/step-000010-p0", true]],
  );
});

test("prompts are told apart by the words in which they differ", () => {
  const told = (...prompts) => differences(prompts);
  assert.deepEqual(told("a photo of a car", "a photo of a house"), ["car", "house"]);
  assert.deepEqual(told("a red car in rain", "a big old car in rain"), ["red", "big old"]);
  assert.deepEqual(told("a cat in the style of Monet"), ["a cat in the style of Monet"]);
  assert.deepEqual(told("car", "car wash"), ["car", "car wash"]);
  assert.deepEqual(told("a a a", "a a"), ["a a", "a"]);
  assert.deepEqual(told("same", "same"), ["same", "same"]);
  assert.deepEqual(told(), []);
});
