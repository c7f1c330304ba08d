//! Defences as users compose them in run files: what is accepted, and what each mistake is answered with.

use super::tests::{keys, load, message};

/// The commented example of a defence is a defence, survives being written out, and names every key that there is.
#[test]
fn the_example_of_a_defence_is_complete() {
    let text = include_str!("../../examples/defence.toml");
    let config = load(text, &[]).unwrap();
    assert_eq!(load(&config.resolved().unwrap(), &[]).unwrap(), config);
    let defence = |text: &str| text.parse::<toml::Table>().unwrap()["defence"].clone();
    let mut named = Vec::new();
    let mut known = Vec::new();
    keys("", &defence(text), &mut named);
    keys("", &defence(&config.resolved().unwrap()), &mut known);
    // These two are the tables of examples/harden.toml.
    let own = |key: &&String| !key.starts_with("adversary.") && !key.starts_with("round.outer.");
    assert_eq!(known.iter().filter(own).collect::<Vec<_>>(), named.iter().filter(own).collect::<Vec<_>>());
    assert!(text.contains("frozen_attack = { steps = 300, refresh = 1000, first = 0 }"));
    assert!(config.composition() == config.defence.unwrap());
}

const BOOSTER: &str = "preset = \"booster\"\nmodel.path = \"m\"\ndata.aligned.path = \"a\"\ndata.harmful.path = \"h\"";

/// What contradicts itself in a defence: (an override, start of the message).
#[test]
fn contradictions_in_a_defence_are_answered_with_key_and_remedy() {
    load(BOOSTER, &[]).unwrap();
    let lora = "defence.adversary=[{name=\"a\", data=\"harmful\", lr=1e-5, params=\"lora\"}]";
    let frozen = "defence.point.after-step={frozen_attack={steps=3, refresh=2}}";
    for (overrides, expected) in [
        (
            &["defence.term.0.at=after-stp"][..],
            "defence.term.0.at: there is no [defence.point.after-stp] (from an override); did",
        ),
        (&["defence.term.0.data=algned"], "defence.term.0.data: there is no [data.algned]"),
        (&["defence.term.0.name=harmful"], "defence.term.1.name: `harmful` is the name of two terms"),
        (&["defence.term.0.weight=inf"], "defence.term.0.weight: is inf"),
        (&["defence.term=[]"], "defence.term: there is none"),
        (&["defence.term.2.at=base"], "defence.point.after-step: has no effect: no term is at it"),
        (
            &["defence.term.0.loss=cross_entrpy"],
            "defence.term.0.loss: `cross_entrpy` is not a choice (from an override); did",
        ),
        (&["defence.term.0.loss={dpo={beta=0.0}}"], "defence.term.0.loss.dpo.beta: is 0"),
        (&["defence.term.0.loss={dpo={}}"], "defence.term.0.loss.dpo.beta: missing"),
        (&["defence.term.0.loss={dpo={betta=1.0}}"], "defence.term.0.loss.dpo.betta: unknown key"),
        (&["defence.term.0.loss={cross_entropy={a=1}}"], "defence.term.0.loss.cross_entropy: has no settings"),
        (&["defence.point.after-step.step.size=0"], "defence.point.after-step.step.size: is 0"),
        (&["defence.point.after-step.attack={}"], "defence.point.after-step: expected one of attack, "),
        (&["defence.point.base={noise={relative=0.1}}"], "defence.point.base: is the name of the weights themselves"),
        (&["defence.outer_steps=0"], "defence.outer_steps: is 0"),
        (&["defence.trained=some"], "defence.trained: expected \"all\" or a table of layers and modules"),
        (&["defence.trained={layers=[]}"], "defence.trained.layers: is empty"),
        (
            &["defence.round=[{outer_steps=1, weights={alined=1.0}}]"],
            "defence.round.0.weights.alined: there is no term",
        ),
        (&["defence.round=[{outer_steps=1, outer={optimizer=\"adam\"}}]"], "defence.round.0.outer.optimizer: differs"),
        (&["defence.combine=product"], "defence.combine: `product` is not a choice"),
        (&["defence.point.after-step={attack={}}"], "defence.adversary: there is none"),
        (&[frozen, lora], "defence.adversary.0.params: a frozen attack trains all weights"),
        (&[lora], "defence.adversary: has no effect: no point is reached by attacks"),
        (&["tar.inner_steps=3"], "tar: a run has [tar] or [defence], and this one has both"),
        (&["compat.entropy_over=all"], "compat.entropy_over: has no effect with [defence]"),
        (&["safeguard={method=\"max_entropy\", data=\"harmful\"}"], "safeguard.retain_data: there is no [data.retain]"),
    ] {
        let text = message(BOOSTER, overrides);
        assert!(text.starts_with(expected), "{text}\n{expected}");
    }
    let neither = message("[model]\npath = \"m\"\n[data.a]\npath = \"a\"", &[]);
    assert_eq!(neither, "tar: missing; add a table [tar] or [defence], or a preset");
}
