// A box's list of words: read as the server reads it (see words_of in nodes/concept.py), and with a word taken in or left out.
import assert from "node:assert/strict";
import { test } from "node:test";
import { isSpelling, kindsIn, withWord, wordsOf } from "../../../web/word_lists.mjs";

test("an empty box is automatic, a single - is no words", () => {
  for (const text of ["", "  ", "\n,, \n"]) assert.equal(wordsOf(text), null);
  assert.deepEqual(wordsOf(" - "), []);
  assert.deepEqual(wordsOf("sports  car,\n- ,auto\n"), ["sports car", "-", "auto"]);
});

test("an empty box loses none of the automatic words", () => {
  const chosen = ["auto", "automobile"];
  assert.equal(withWord("", chosen, "machine", true), "auto, automobile, machine");
  assert.equal(withWord("", chosen, "auto", false), "automobile");
});

test("a box with words loses none of them, and keeps its lines", () => {
  assert.equal(withWord("Auto, wagon", ["auto", "wagon"], "machine", true), "Auto, wagon, machine");
  assert.equal(withWord("Auto, wagon", ["auto", "wagon"], "auto", false), "wagon");
  assert.equal(withWord("auto\nwagon", ["auto", "wagon"], "machine", true), "auto\nwagon\nmachine");
  assert.equal(withWord("auto", ["auto"], "Auto", true), "Auto");
});

test("without its last word a box says that there are none, which is not automatic", () => {
  assert.equal(withWord("auto", ["auto"], "auto", false), "-");
  assert.equal(withWord("-", [], "machine", true), "machine");
});

test("another spelling in the phrase cannot be left out", () => {
  assert.ok(isSpelling("Coke", "Coca-Cola | coke"));
  assert.ok(!isSpelling("Coca Cola", "Coca-Cola | coke"));
});

test("the kinds that a hint says to choose", () => {
  const kinds = ["entity", "abstraction", "relationship", "custom"];
  const named = (hint) => kindsIn(hint, kinds);
  assert.deepEqual(named('"next to" looks like a relation: choose the kind relationship.'), ["relationship"]);
  assert.deepEqual(named('"X" looks like a style: choose the kind abstraction, unless you mean the thing.'), ["abstraction"]);
  assert.deepEqual(named("No relation: choose the kind entity or abstraction."), ["entity", "abstraction"]);
  assert.deepEqual(named('"entity" looks like 2 concepts: train one LoRA for each.'), []);
});
