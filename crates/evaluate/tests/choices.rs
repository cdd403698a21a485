//! Likelihoods of choices against a forward pass of each alone.

use candle_core::{DType, Device, Tensor};
use waterfill_evaluate::tasks::{Items, Question, Task};
use waterfill_evaluate::{Answering, EvalInputs, EvaluateError, QuestionResult, evaluate_choices};
use waterfill_fixture::{CONTEXT, Fixture, Shape, generate};
use waterfill_model::other::OtherModel;
use waterfill_model::{Model, Text};
use waterfill_store::{Silent, Work};

struct Place {
    _dir: tempfile::TempDir,
    model: Model,
    text: Text,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let Fixture { model, .. } = generate(&dir.path().join("f"), 5, &Shape::default()).unwrap();
        let opened = Model::open(&model, &Device::Cpu).unwrap();
        let text = Text::open(&model, &opened.config).unwrap();
        Self { _dir: dir, model: opened, text }
    }

    fn answer(&self, questions: &[Question]) -> Result<Vec<QuestionResult>, EvaluateError> {
        let out = tempfile::tempdir().unwrap();
        let items = Items::Questions(questions.to_vec());
        let asked =
            EvalInputs { task: Task::Piqa, items: &items, bos: false, skip_long: false, batch_tokens: 4096, name: "q" };
        let work = Work::begin(out.path()).unwrap();
        Ok(evaluate_choices(Answering::Streamed(&self.model), &self.text, &asked, &work, &Silent)?.1)
    }

    /// Log-likelihood of the last `count` of `tokens`, by a row of its own.
    fn likelihood(&self, tokens: &[u32], count: usize) -> f64 {
        let mut x: Option<Tensor> = None;
        let row = [vec![&tokens[..tokens.len() - 1]]];
        let keep = |_, state| -> Result<(), EvaluateError> {
            x = Some(state);
            Ok(())
        };
        self.model.embed(&row, keep).unwrap();
        let mut x = x.unwrap();
        for i in 0..self.model.config.layers {
            x = self.model.block(i).unwrap().forward(&x).unwrap();
        }
        let head = self.model.head().unwrap();
        let logits = head.logits(&head.normalise(&x.get(0).unwrap()).unwrap()).unwrap();
        let logits: Vec<Vec<f64>> = logits.to_dtype(DType::F64).unwrap().to_vec2().unwrap();
        let one = |at: usize| {
            let row = &logits[at - 1];
            row[tokens[at] as usize] - row.iter().map(|l| l.exp()).sum::<f64>().ln()
        };
        (tokens.len() - count..tokens.len()).map(one).sum()
    }
}

fn question(contexts: &[&str], continuations: &[&str]) -> Question {
    let owned = |texts: &[&str]| texts.iter().map(|t| t.to_string()).collect();
    Question { subject: "any".into(), contexts: owned(contexts), continuations: owned(continuations), answer: 1 }
}

/// Whatever is beside it in a batch, a choice has the likelihood of its tokens after its context; what is too long
/// keeps its end.
#[test]
fn likelihoods_are_those_of_each_choice_alone() {
    let place = Place::new();
    let long = "Ada sees the red fox . ".repeat(40);
    let questions = [
        question(&["Ada sees the red"], &[" fox", " boat", " lamp"]),
        question(&["Ada sees the"], &[" red fox .", " boat"]),
        // The space before belongs to what follows.
        question(&["Ada sees the red ", "Bram likes the "], &["fox in the boat ."]),
        question(&[&long], &[" Bram likes the boat .", " Cleo"]),
    ];
    let results = place.answer(&questions).unwrap();
    for (question, result) in questions.iter().zip(&results) {
        assert_eq!(result.scores.len(), question.choices());
        for (choice, &score) in result.scores.iter().enumerate() {
            let (context, continuation) = question.request(choice);
            let before = place.text.encode(context.trim_end()).unwrap();
            let whole = place.text.encode(&format!("{context}{continuation}")).unwrap();
            let from = whole.len().saturating_sub(CONTEXT + 1);
            let expected = place.likelihood(&whole[from..], whole.len() - before.len());
            assert!((score - expected).abs() < 1e-3, "{question:?} {choice}: {score}, alone {expected}");
        }
        let best = |score: &dyn Fn(usize) -> f64| {
            (0..question.choices()).max_by(|&a, &b| score(a).total_cmp(&score(b))).unwrap()
        };
        assert_eq!(result.correct, best(&|i| result.scores[i]) == 1);
        let length = |i: usize| (question.request(i).1.chars().count() - 1) as f64;
        assert_eq!(result.correct_other_way, Some(best(&|i| result.scores[i] / length(i)) == 1));
    }
    assert_eq!(results.iter().map(|r| r.truncated).collect::<Vec<_>>(), [false, false, false, true]);
}

#[test]
fn a_continuation_longer_than_the_context_is_refused() {
    let place = Place::new();
    let long = " fox".repeat(CONTEXT + 5);
    let message = place.answer(&[question(&["Ada"], &[" boat", &long])]).unwrap_err().to_string();
    assert!(message.contains("128"), "{message}");
}

/// An architecture that runs whole: prompts read at once and tokens one by one, as its own run gives them.
#[test]
fn whole_models_give_the_likelihoods_of_their_own_run() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = waterfill_fixture::small_config_of("llama2-7b").unwrap();
    config["architectures"] = serde_json::json!(["OlmoForCausalLM"]);
    config["clip_qkv"] = serde_json::Value::Null;
    waterfill_fixture::write_random(dir.path(), &config, 1).unwrap();
    let model = OtherModel::open(dir.path(), &Device::Cpu).unwrap();
    let text = Text::open_sized(dir.path(), model.vocab).unwrap();
    let questions = [
        question(&["Ada sees the red"], &[" fox in the boat .", " lamp"]),
        question(&["Ada sees the", "Bram likes the blue"], &[" red fox"]),
    ];
    let items = Items::Questions(questions.to_vec());
    let asked =
        EvalInputs { task: Task::Piqa, items: &items, bos: false, skip_long: false, batch_tokens: 64, name: "q" };
    let out = tempfile::tempdir().unwrap();
    let work = Work::begin(out.path()).unwrap();
    let results = evaluate_choices(Answering::Whole(&model), &text, &asked, &work, &Silent).unwrap().1;
    for (question, result) in questions.iter().zip(&results) {
        for (choice, &score) in result.scores.iter().enumerate() {
            let (context, continuation) = question.request(choice);
            let before = text.encode(context).unwrap().len();
            let tokens = text.encode(&format!("{context}{continuation}")).unwrap();
            let mut expected = 0.0;
            let each = |position: usize, logits: Tensor| -> Result<(), EvaluateError> {
                let logits: Vec<f64> = logits.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
                if position + 1 >= before {
                    let norm = logits.iter().map(|l| l.exp()).sum::<f64>().ln();
                    expected += logits[tokens[position + 1] as usize] - norm;
                }
                Ok(())
            };
            model.run(&[&tokens[..tokens.len() - 1]], each).unwrap();
            assert!((score - expected).abs() < 1e-3, "{context:?}: {score}, by its own run {expected}");
        }
    }
}
