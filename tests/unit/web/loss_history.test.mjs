// Losses out of events, and curves of them.
import assert from "node:assert/strict";
import { test } from "node:test";
import { LossHistory, paths } from "../../../web/loss_history.mjs";

let seed = 1;
const random = () => (seed = (seed * 16807) % 2147483647) / 2147483647;

function filled(steps, value = (step) => step) {
  const history = new LossHistory();
  for (let step = 1; step <= steps; step++) history.take({ n: step, type: "step", step, losses: { esd: value(step) } });
  return history;
}

test("an event counts once", () => {
  const history = filled(3);
  history.take({ n: 2, type: "step", step: 2, losses: { esd: 99 } });
  assert.deepEqual(history.points.map(({ losses }) => losses.esd), [1, 2, 3]);
  assert.equal(history.last, 3);
  assert.ok(history.misses({ n: 5 }));
  assert.ok(!history.misses({ n: 4 }));
});

test("steps trained again after a resume replace what lay beyond the checkpoint", () => {
  const history = filled(70);
  history.take({ n: 71, type: "state", state: "queued" });
  history.take({ n: 72, type: "step", step: 51, losses: { esd: -1 } });
  assert.equal(history.points.length, 51);
  assert.equal(history.points.at(-1).losses.esd, -1);
});

test("the concept's rate is taken from any event that has one", () => {
  const history = filled(10);
  history.take({ n: 11, type: "rate", step: 0, concept_rate: 0.9 });
  history.take({ n: 12, type: "sample", concept_rate: 0.25 });
  history.take({ n: 13, type: "sample", step: 10, concept_rate: null });
  assert.deepEqual(history.rates, [{ step: 0, rate: 0.9 }, { step: 10, rate: 0.25 }]);
});

test("the nearest point is what a search over all finds", () => {
  const history = new LossHistory();
  let step = 0;
  for (let n = 1; n <= 200; n++) history.take({ n, type: "step", step: (step += 1 + Math.floor(5 * random())), losses: {} });
  for (let i = 0; i < 500; i++) {
    const wanted = random() * (step + 10) - 5;
    const distance = ({ step }) => Math.abs(step - wanted);
    const best = Math.min(...history.points.map(distance));
    assert.equal(distance(history.points[history.nearest(wanted)]), best);
  }
});

test("bins keep the mean, the extremes and the order, at any length", () => {
  for (const steps of [1, 2, 79, 80, 81, 1000, 10_000]) {
    const values = Array.from({ length: steps }, random);
    const bins = filled(steps, (step) => values[step - 1]).bins("esd", 80);
    assert.ok(bins.length <= 80 && bins.length >= Math.min(steps, 40), `${steps}: ${bins.length}`);
    assert.equal(Math.min(...bins.map(({ low }) => low)), Math.min(...values));
    assert.equal(Math.max(...bins.map(({ high }) => high)), Math.max(...values));
    for (const { low, mean, high } of bins) assert.ok(low <= mean + 1e-12 && mean <= high + 1e-12);
    bins.reduce((before, bin) => (assert.ok(bin.step > before.step), bin));
  }
});

test("a loss that is missing or no number is left out, not drawn as 0", () => {
  const history = filled(10, (step) => (step % 2 ? 5 : step === 4 ? NaN : undefined));
  assert.deepEqual(history.bins("esd", 80).map(({ low }) => low), [5, 5, 5, 5, 5]);
  assert.deepEqual(history.bins("rsc", 80), []);
});

test("paths fill their box; a flat curve lies in the middle", () => {
  const { low, high, mean, spread } = paths(filled(3).bins("esd", 80), 80, 40);
  assert.deepEqual([low, high, mean], [1, 3, "M0 40L40 20L80 0"]);
  assert.equal(spread, "M0 40L40 20L80 0L80 0L40 20L0 40Z");
  assert.equal(paths(filled(2, () => 7).bins("esd", 80), 80, 40).mean, "M0 20L80 20");
  assert.ok(!paths(filled(1).bins("esd", 80), 80, 40).mean.includes("NaN"));
});

test("ten thousand steps are read and drawn in less than a second of computing", () => {
  const began = process.cpuUsage();
  const bins = filled(10_000, random).bins("esd", 80);
  paths(bins, 80, 40);
  const { user, system } = process.cpuUsage(began); // microseconds
  assert.ok(user + system < 1e6);
});
