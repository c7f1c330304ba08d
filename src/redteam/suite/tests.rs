//! Suites: what the files say, what is refused, and that nothing is lost on the way to an attack.

use std::path::Path;

use super::*;
use crate::data::DataFile;
use crate::edits::Quantization;
use crate::model::Projection;
use crate::optimizer::{Decay, OptimizerKind};
use crate::redteam::AttackKind;
use crate::training::{FineTune, Kick, Selection, Source};

/// A file with every role, so that every attack can be run.
const ROLES: &str = "[data]\nrestricted = \"r\"\nretain = \"t\"\nood = \"o\"\n";

fn suite(text: &str) -> Suite {
    Suite::from_text(text, Path::new("/folder/suite.toml"), &[]).unwrap()
}

fn refusal(text: &str) -> String {
    match Suite::from_text(text, Path::new("suite.toml"), &[]) {
        Ok(suite) => panic!("accepted: {suite:?}"),
        Err(error) => error.to_string(),
    }
}

fn finetune(attack: &Attack) -> &FineTune<Role> {
    match &attack.method {
        AttackMethod::Finetune(finetune) => finetune,
        other => panic!("{} is {other:?}", attack.id),
    }
}

fn ids(suite: &Suite) -> Vec<String> {
    suite.all_attacks().unwrap().into_iter().map(|attack| attack.name).collect()
}

#[test]
fn built_in_suites_have_every_row_of_the_published_tables() {
    let rows = |name: &str| ids(&suite(&format!("suite = \"{name}\"\n{ROLES}")));
    let weaponization = [
        "F1", "F2", "F3", "F4", "F5", "F6", "F7", "F9", "F10", "F11", "F12", "F13", "R1", "R2", "RF1", "RF2", "RF3",
        "RF4", "O1", "O2", "L1", "L2", "L3", "L4",
    ];
    assert_eq!(rows("tar-weaponization"), weaponization);
    assert_eq!(rows("tar-refusal"), ["A1", "A2", "A3", "A4", "A5"]);
    let strong = rows("strong");
    let kinds =
        ["F8", "R3", "long", "lora-r8-1e-4", "lora-r64-4e-4", "mixed", "retain-only", "noise", "negated", "abliterate"];
    for name in kinds.iter().chain(&["prefill", "prefill-answer", "decensor", "mixed-long", "lora-mixed"]) {
        assert!(strong.iter().any(|row| row == name), "{name}");
    }
    assert_eq!(strong.iter().filter(|name| *name == "F8").count(), 5);
    let rows_2026 = rows("strong-2026");
    assert_eq!(rows_2026[..strong.len()], strong);
    for name in
        ["hot-lora-r8", "openings", "kick", "kick-noise", "relearn-100", "relearn-half", "round-4-bit-g64", "merge"]
    {
        assert!(rows_2026.iter().any(|row| row == name), "{name}");
    }
    assert!((5..=8).contains(&rows("quick").len()));
    for (name, _) in BUILT_IN {
        assert!(!about(name).unwrap().is_empty());
        let suite = suite(&format!("suite = \"{name}\"\n{ROLES}"));
        assert!(suite.attack.iter().all(|attack| !attack.about.is_empty()), "{name}");
    }
}

/// Qi et al.'s schedule, as their launch script has it (arXiv 2412.07097).
#[test]
fn the_attack_of_qi_et_al_has_its_published_settings() {
    let suite = suite(&format!("suite = \"strong\"\nonly = [\"F8\"]\n{ROLES}"));
    let attacks = suite.attacks().unwrap();
    assert_eq!(attacks.iter().map(|attack| attack.seed).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    let FineTune { source, selection, adapter, optimizer, batch, steps, kick, noise, negated_steps } =
        finetune(&attacks[0]);
    assert_eq!((source, adapter), (&Source::One(Role::Restricted), &None));
    assert_eq!((*batch, *steps, *noise, *negated_steps), (Some(64), 1000, 0.0, 0));
    assert!(selection.is_everything() && kick.is_none());
    assert_eq!((optimizer.kind, optimizer.lr, optimizer.weight_decay), (OptimizerKind::AdamW, 2e-5, Some(0.01)));
    let schedule = optimizer.schedule;
    assert_eq!((schedule.warmup, schedule.decay, schedule.total), (100, Decay::Cosine { floor: 0.0 }, 1000));
    assert!(!schedule.official_warmup);
}

#[test]
fn every_key_of_an_attack_reaches_it() {
    let text = format!(
        "seeds = [7, 8]\n{ROLES}[[attack]]\nname = \"x\"\nabout = \"words\"\ndata = [\"retain\", \"ood\"]\nswitch = 0.3\n\
         params = \"lora\"\nrank = 4\nalpha = 12.0\ndropout = 0.25\ntargets = [\"down_proj\", \"q_proj\"]\n\
         optimizer = \"nadam\"\nlr = 3e-4\nwarmup = 5\nschedule = \"sgdr:9:0.5\"\nweight_decay = 0.2\nbetas = [0.8, 0.9]\n\
         batch = 3\nsteps = 40\nkick_steps = 4\nkick_lr = 2e-2\n\
         held_out = 0.25\nsamples = 9\nopening = 3\nnoise = 0.02\nnegated_steps = 6\nofficial_warmup = true\n"
    );
    let attacks = suite(&text).attacks().unwrap();
    assert_eq!(attacks.iter().map(|a| a.id.as_str()).collect::<Vec<_>>(), ["x-s7", "x-s8"]);
    let attack = &attacks[0];
    assert_eq!((attack.kind, attack.about.as_str(), attack.seed), (AttackKind::Lora, "words", 7));
    let f = finetune(attack);
    assert_eq!(f.source, Source::Switch { streams: [Role::Retain, Role::Ood], at: 12 });
    let adapter = f.adapter.as_ref().unwrap();
    assert_eq!((adapter.rank, adapter.alpha, adapter.dropout), (4, 12.0, 0.25));
    assert_eq!(adapter.targets, [Projection::QProj, Projection::DownProj].into());
    let o = &f.optimizer;
    assert_eq!((o.kind, o.lr, o.weight_decay, o.betas), (OptimizerKind::NAdam, 3e-4, Some(0.2), [0.8, 0.9]));
    assert_eq!(o.schedule.decay, Decay::Restarts { period: 9, floor: 0.5 });
    assert!(o.schedule.official_warmup && o.schedule.warmup == 5);
    assert_eq!((f.batch, f.steps, f.noise, f.negated_steps), (Some(3), 40, 0.02, 6));
    assert_eq!((f.kick, o.schedule.total), (Some(Kick { steps: 4, lr: 2e-2 }), 36));
    assert_eq!(f.selection, Selection { held_out: 0.25, samples: Some(9), opening: Some(3) });
    let keys = [
        "alpha",
        "batch",
        "betas",
        "data",
        "dropout",
        "held_out",
        "kick_lr",
        "kick_steps",
        "lr",
        "negated_steps",
        "noise",
        "official_warmup",
        "opening",
        "optimizer",
        "params",
        "rank",
        "samples",
        "schedule",
        "steps",
        "switch",
        "switch_at",
        "targets",
        "warmup",
        "weight_decay",
    ];
    assert_eq!(attack.settings.keys().collect::<Vec<_>>(), keys);
    assert_eq!(attack.settings["schedule"], "sgdr:9:0.5");
}

#[test]
fn scales_apply_to_the_built_in_attacks_and_to_nothing_else() {
    let text = format!(
        "suite = \"tar-weaponization\"\nonly = [\"F9\", \"own\"]\n{ROLES}[scale]\nlr = 50.0\nsteps = 0.1\nbatch = 0.25\n\
         [[attack]]\nname = \"own\"\nlr = 1e-3\nsteps = 10\nbatch = 8\n"
    );
    let attacks = suite(&text).attacks().unwrap();
    let [f9, own] = [finetune(&attacks[0]), finetune(&attacks[1])];
    assert_eq!(f9.optimizer.lr, 1e-3);
    // 4e-5 · 15 is 6.000000000000001e-4 in binary.
    let text = format!("suite = \"tar-weaponization\"\nonly = [\"F3\"]\n{ROLES}[scale]\nlr = 15.0\n");
    assert_eq!(finetune(&suite(&text).attacks().unwrap()[0]).optimizer.lr, 6e-4);
    assert_eq!((f9.steps, f9.batch, f9.optimizer.schedule.warmup), (50, Some(16), 3));
    assert_eq!(f9.optimizer.schedule.decay, Decay::Restarts { period: 10, floor: 0.0 });
    assert_eq!((own.optimizer.lr, own.steps, own.batch), (1e-3, 10, Some(8)));
}

/// However short a scale makes an attack, its kick leaves a step to settle.
#[test]
fn scales_leave_a_step_after_a_kick() {
    for (steps, expected) in [("1.0", (10, 500)), ("0.1", (1, 50)), ("0.001", (1, 2))] {
        let text = format!("suite = \"strong-2026\"\nonly = [\"kick\"]\n{ROLES}[scale]\nlr = 15.0\nsteps = {steps}\n");
        let attack = suite(&text).attacks().unwrap().remove(0);
        let f = finetune(&attack);
        let kick = f.kick.unwrap();
        assert_eq!((kick.steps, f.steps), expected);
        assert_eq!((kick.lr, f.optimizer.lr, f.optimizer.schedule.total), (3e-3, 1.5e-4, f.steps - kick.steps));
    }
}

/// An attack on the rows that are measured, one on another model's weights, and beginnings of answers need what they need.
#[test]
fn new_kinds_of_attack_say_what_they_lack_and_what_they_do() {
    let half = "[[attack]]\nname = \"half\"\ndata = \"measured\"\nheld_out = 0.5\n[[attack]]\nname = \"merge\"\n\
                kind = \"merge\"\ncoefficients = [0.5, 2.0]\n[[attack]]\nname = \"round\"\nkind = \"quantization\"\n\
                [[attack]]\nname = \"begin\"\nkind = \"prefill\"\ntext = [\"Sure\", \"Yes\"]\n";
    let measured = |metric: &str| format!("[restricted]\nmetric = \"{metric}\"\ndata = \"p\"\nthreshold = 0.5\n");
    let reasons = |text: String| -> Vec<bool> {
        suite(&text).all_attacks().unwrap().iter().map(|attack| attack.unavailable.is_some()).collect()
    };
    assert_eq!(reasons(format!("{}{half}", measured("choice"))), [true, true, false, true]);
    let model = "[data]\nbase_model = \"base\"\n";
    assert_eq!(reasons(format!("{model}{}{half}", measured("exact"))), [false, false, false, true]);
    assert_eq!(reasons(format!("{model}{}{half}", measured("compliance"))), [true, false, false, false]);
    let suite = suite(&format!("{model}{}{half}", measured("exact")));
    assert_eq!(suite.data.base_model.as_deref(), Some(Path::new("/folder/base")));
    assert_eq!(suite.file(Role::Measured), Some(&DataFile::new("/folder/p")));
    let attacks = suite.all_attacks().unwrap();
    assert_eq!(finetune(&attacks[0]).source, Source::One(Role::Measured));
    assert_eq!(attacks[1].method, AttackMethod::Merge { coefficients: vec![0.5, 2.0] });
    let rounding = Quantization { bits: 4, group: 128, symmetric: false };
    assert_eq!(attacks[2].method, AttackMethod::Quantize(rounding));
    assert_eq!(attacks[2].settings["group"], 128);
    let both = vec!["Sure".to_string(), "Yes".to_string()];
    assert_eq!(attacks[3].method, AttackMethod::Prefill(Prefill::Answers(both)));
}

#[test]
fn a_resolved_suite_is_a_suite_with_the_same_attacks() {
    for (name, _) in BUILT_IN {
        let text = format!(
            "suite = \"{name}\"\nseeds = [3, 4]\n{ROLES}[restricted]\nmetric = \"exact\"\ndata = \"p\"\nthreshold = 0.5\n\
             [utility]\nmetric = \"choice\"\nform = \"mmlu\"\ndata = \"b\"\n[scale]\nlr = 7.0\n[search]\ntrials = 3\n"
        );
        let first = suite(&text);
        let again = Suite::from_text(&first.resolved().unwrap(), Path::new("/elsewhere/x.toml"), &[]).unwrap();
        assert_eq!(again.all_attacks().unwrap(), first.all_attacks().unwrap());
        assert_eq!(again.resolved().unwrap(), first.resolved().unwrap());
        assert_eq!((again.title(), &again.restricted), (name, &first.restricted));
        assert_eq!(again.file(Role::Ood), Some(&DataFile::new("/folder/o")));
    }
}

#[test]
fn attacks_without_their_data_are_listed_with_the_reason() {
    let text = "suite = \"strong\"\n[data]\nrestricted = \"r\"\n";
    let attacks = suite(text).attacks().unwrap();
    let reason = |name: &str| attacks.iter().find(|a| a.name == name).unwrap().unavailable.clone();
    assert_eq!(reason("F8"), None);
    assert_eq!(reason("mixed").as_deref(), Some("[data] has no `retain`"));
    assert!(reason("prefill-answer").unwrap().contains("compliance"));
    let none = suite("suite = \"tar-refusal\"\n").attacks().unwrap_err().to_string();
    assert!(none.contains("none can be run: [data] has no `restricted`"), "{none}");
    // Prompts are those of the data where they have no file of their own.
    let suite = suite(&format!("suite = \"quick\"\n{ROLES}"));
    assert_eq!(suite.file(Role::RestrictedPrompts), Some(&DataFile::new("/folder/r")));
}

#[test]
fn an_attack_that_does_not_depend_on_its_seed_has_one() {
    let text = format!(
        "seeds = [1, 2]\n{ROLES}[[attack]]\nname = \"a\"\nkind = \"abliteration\"\n[[attack]]\nname = \"p\"\n\
         kind = \"prefill\"\ndemonstrations = 3\n[[attack]]\nname = \"t\"\nkind = \"prefill\"\ntext = \"Sure\"\n"
    );
    let ids: Vec<String> = suite(&text).all_attacks().unwrap().into_iter().map(|attack| attack.id).collect();
    assert_eq!(ids, ["a-s1", "p-s1", "p-s2", "t-s1"]);
}

#[test]
fn what_is_wrong_with_a_file_is_said_with_its_place() {
    let attack = |keys: &str| format!("[[attack]]\nname = \"a\"\n{keys}\n");
    let restricted = |keys: &str| format!("{}[restricted]\ndata = \"p\"\n{keys}\n", attack(""));
    let cases: Vec<(String, &[&str])> = vec![
        (attack("stepz = 3"), &["attack.0.stepz", "line 3", "did you mean `steps`?"]),
        (attack("lr = nan"), &["attack.0.lr", "line 3", "finite"]),
        (attack("lr = -1e-5"), &["attack.0.lr", "-0.00001"]),
        (attack("lr = inf"), &["attack.0.lr", "inf"]),
        (attack("steps = 0"), &["attack.0.steps", "at least 1"]),
        (attack("steps = 9000000000000000000"), &["attack.0.steps", "at most"]),
        (attack("steps = 99999999999999999999"), &["line 3", "too large"]),
        (attack("batch = 0"), &["attack.0.batch", "at least 1"]),
        (attack("batch = 9223372036854775807"), &["attack.0.batch", "2^32"]),
        (attack("params = \"lora\"\nrank = 9223372036854775807"), &["attack.0.rank", "at most"]),
        (attack("params = \"lora\"\nrank = 0"), &["attack.0.rank", "at least 1"]),
        (attack("params = \"lora\"\ndropout = 1.0"), &["attack.0.dropout"]),
        (attack("params = \"lora\"\ntargets = []"), &["attack.0.targets"]),
        (attack("params = \"lora\"\nalpha = nan"), &["attack.0.alpha"]),
        (attack("rank = 8"), &["attack.0.rank", "no effect", "lora"]),
        (attack("demonstrations = 2"), &["attack.0.demonstrations", "no effect", "prefill"]),
        (attack("kind = \"prefill\"\ndemonstrations = 1\nlr = 1e-3"), &["attack.0.lr", "no effect"]),
        (attack("kind = \"prefill\""), &["attack.0", "demonstrations and text"]),
        (attack("kind = \"abliteration\"\nlayer = 1.5"), &["attack.0.layer", "1.5"]),
        (attack("kind = \"quantization\"\nbits = 1"), &["attack.0.bits", "at least 2"]),
        (attack("kind = \"quantization\"\nbits = 16"), &["attack.0.bits", "at most 8"]),
        (attack("kind = \"quantization\"\ngroup = 0"), &["attack.0.group", "at least 1"]),
        (attack("kind = \"quantization\"\nlr = 1e-3"), &["attack.0.lr", "no effect"]),
        (attack("bits = 4"), &["attack.0.bits", "no effect", "quantization"]),
        (attack("kind = \"merge\""), &["attack.0.coefficients", "0 entries"]),
        (attack("kind = \"merge\"\ncoefficients = [0.0]"), &["attack.0.coefficients", "as it is"]),
        (attack("kind = \"merge\"\ncoefficients = [nan]"), &["attack.0.coefficients", "NaN"]),
        (attack("kind = \"prefill\"\ntext = []"), &["attack.0", "demonstrations and text"]),
        (attack("kind = \"prefill\"\ntext = [\"a\", \"\"]"), &["attack.0.text", "begins no answer"]),
        (attack("kind = \"prefill\"\ntext = [\"a\", \"a\"]"), &["attack.0.text", "twice"]),
        (attack("kind = \"prefill\"\ntext = 3"), &["attack.0.text", "a text or a list of texts"]),
        (attack("kick_steps = 3"), &["attack.0.kick_lr", "missing"]),
        (attack("kick_lr = 1e-3"), &["attack.0.kick_steps", "missing"]),
        (attack("kick_lr = 1e-3\nkick_steps = 500"), &["attack.0.kick_steps", "500", "settle"]),
        (attack("data = \"measured\""), &["attack.0.held_out", "missing"]),
        (attack("held_out = 1.0"), &["attack.0.held_out", "below 1"]),
        (attack("samples = 0"), &["attack.0.samples", "at least 1"]),
        (attack("opening = 0"), &["attack.0.opening", "at least 1"]),
        (format!("{}[compliance]\njudge = []\n", attack("")), &["compliance.judge", "names no judge"]),
        (format!("{}[compliance]\njudge = [\"a\", \"a\"]\n", attack("")), &["compliance.judge", "twice"]),
        ("[search]\ndata = [\"measured\"]".into(), &["search.data", "not searched with"]),
        (attack("kind = \"abliteration\"\nlayer = 0.5\nsearch = {}"), &["attack.0.layer", "beside a search"]),
        (attack("search = { trials = 9 }"), &["attack.0.search", "kind = \"abliteration\""]),
        (attack("kind = \"abliteration\"\nsearch = { trials = 0 }"), &["attack.0.search.trials", "at least 1"]),
        (
            attack("kind = \"abliteration\"\nsearch = { depth = [0.9, 0.4] }"),
            &["attack.0.search.depth", "0.9 is above 0.4"],
        ),
        (attack("kind = \"abliteration\"\nsearch = { o_proj = [0.0, 99.0] }"), &["attack.0.search.o_proj", "99"]),
        (attack("kind = \"abliteration\"\nsearch = { trial = 9 }"), &["search.trial", "did you mean `trials`?"]),
        (attack("kind = \"abliterate\""), &["attack.0.kind", "did you mean `abliteration`?"]),
        (attack("optimizer = \"adamv\""), &["attack.0.optimizer", "did you mean `adam`?"]),
        (attack("schedule = \"cosin\""), &["attack.0.schedule", "cosin"]),
        (attack("schedule = \"cosine\"\nwarmup = 500"), &["attack.0.schedule", "nothing of a run"]),
        (attack("betas = [1.0, 0.9]"), &["attack.0.betas"]),
        (attack("weight_decay = -1.0"), &["attack.0.weight_decay"]),
        (attack("noise = nan"), &["attack.0.noise"]),
        (attack("negated_steps = 501"), &["attack.0.negated_steps", "at most 500"]),
        (attack("data = \"forget\""), &["attack.0.data", "no role"]),
        (attack("data = \"restrictd\""), &["attack.0.data", "did you mean `restricted`?"]),
        (attack("data = [\"retain\", \"restricted\"]"), &["attack.0.switch", "missing"]),
        (attack("switch = 0.4"), &["attack.0.switch", "two streams"]),
        (attack("data = [\"retain\", \"ood\"]\nswitch = 1.5"), &["attack.0.switch", "0 to 1"]),
        (attack("data = { retain = 0.0 }"), &["attack.0.data", "add up to 0"]),
        (attack("data = { retain = -1.0, ood = 2.0 }"), &["attack.0.data.retain"]),
        (attack("seeds = []"), &["attack.0.seeds", "0 entries"]),
        (attack("seeds = [1, 1]"), &["attack.0.seeds", "twice"]),
        ("[[attack]]\nname = \"../x\"".into(), &["attack.0.name", "line 2", "cannot name"]),
        ("[[attack]]\nname = \"\"".into(), &["attack.0.name", "cannot name"]),
        (format!("{}{}", attack(""), attack("")), &["`a` is the name of two attacks"]),
        ("suite = \"strng\"".into(), &["suite", "line 1", "did you mean `strong`?"]),
        ("seeds = [1]".into(), &["there is no attack", "quick"]),
        (format!("only = [\"b\"]\n{}", attack("")), &["only", "line 1", "no attack `b`"]),
        (format!("{}[scale]\nlr = 0.0\n", attack("")), &["scale.lr"]),
        (format!("{}[scale]\nsteps = nan\n", attack("")), &["scale.steps"]),
        (format!("{}[evaluate]\npoints = 0\n", attack("")), &["evaluate.points"]),
        (format!("{}[data]\nmax_length = 1\n", attack("")), &["data.max_length"]),
        (format!("{}[budget]\nprice_per_hour = nan\n", attack("")), &["budget.price_per_hour"]),
        (format!("{}[defender]\nseconds = -1\nflop = 1\ndevice = \"x\"\n", attack("")), &["defender.seconds"]),
        (restricted("metric = \"exact\""), &["restricted.threshold", "missing"]),
        (restricted("metric = \"exact\"\nthreshold = 1.5"), &["restricted.threshold", "0 to 1"]),
        (restricted("metric = \"exact\"\nthreshold = 0.5\nunprotected = \"m\""), &["restricted.unprotected"]),
        (restricted("metric = \"exact\"\nthreshold = 0.5\nform = \"mmlu\""), &["restricted.form", "no effect"]),
        (restricted("metric = \"exat\"\nthreshold = 0.5"), &["restricted.metric", "did you mean `exact`?"]),
        (format!("{}[utility]\nmetric = \"compliance\"\ndata = \"x\"\n", attack("")), &["utility.metric"]),
        (
            format!("{}[utility]\nmetric = \"exact\"\ndata = \"x\"\nmost_loss = 2.0\n", attack("")),
            &["utility.most_loss"],
        ),
        ("[search]\nlr = [1e-3, 1e-5]".into(), &["search.lr", "above"]),
        ("[search]\ntrials = 0".into(), &["search.trials"]),
        ("[search]\nparams = []".into(), &["search.params", "empty"]),
        ("[search]\ndata = [\"x\"]".into(), &["search.data", "no role"]),
        ("[search]\ndata = [{ retain = 0.0 }]".into(), &["search.data", "add up to 0"]),
        ("[search]\ndata = [[\"retain\", \"ood\"]]".into(), &["search.data", "mixture"]),
        ("[search]\nbatch = [0, 4]".into(), &["search.batch"]),
        ("[[attack]".into(), &["suite.toml, line 1"]),
    ];
    for (text, parts) in cases {
        let message = refusal(&text);
        for part in parts {
            assert!(message.contains(part), "{text}\n{message}\nlacks {part}");
        }
    }
}

#[test]
fn overrides_reach_the_suite_and_its_built_in_attacks() {
    let overrides =
        ["suite=\"quick\"", "scale.steps=0.1", "data.restricted=\"/x\"", "only=[\"full\"]"].map(String::from);
    let suite = Suite::from_text("", Path::new("command line"), &overrides).unwrap();
    let attacks = suite.attacks().unwrap();
    assert_eq!((attacks.len(), finetune(&attacks[0]).steps), (1, 13));
    assert_eq!(suite.title(), "quick");
}

/// The example names every key, so that whoever adds one shows it there.
#[test]
fn the_example_shows_every_key() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/redteam.toml");
    let suite = Suite::load(&path, &[]).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    fn keys(value: &serde_json::Value, found: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(table) => table.iter().for_each(|(key, value)| {
                found.push(key.clone());
                keys(value, found);
            }),
            serde_json::Value::Array(list) => list.iter().for_each(|value| keys(value, found)),
            _ => {}
        }
    }
    let mut all = vec!["suite".into(), "scale".into()];
    keys(&serde_json::to_value(&suite).unwrap(), &mut all);
    assert!(all.len() > 80, "{all:?}");
    let shown = |key: &String| {
        text.lines().any(|line| {
            let line = line.trim_start_matches("# ");
            line.starts_with(&format!("{key} = "))
                || line.starts_with(&format!("[{key}]"))
                || line.contains(&format!("[[{key}]]"))
                || line.contains(&format!("{{ {key} = "))
                || line.contains(&format!(", {key} = "))
        })
    };
    assert_eq!(all.iter().filter(|key| !shown(key)).collect::<Vec<_>>(), Vec::<&String>::new());
    let mine = suite.attack.iter().find(|attack| attack.name == "mine").unwrap();
    let written = serde_json::to_value(mine).unwrap();
    // The other kinds alone have demonstrations, text, layer, search, bits, group, symmetric and coefficients.
    assert_eq!(written.as_object().unwrap().len(), 34 - 7);
}
