//! The text that a multiple-choice question is asked with. Three forms are in use whose scores must not be compared.

use super::{LETTERS, Question};

/// How a question is put and its answer scored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PromptForm {
    /// As the TAR authors evaluate (`red_teaming/mmlu_eval` of their code): the prompt ends in "Answer:", and the next-token
    /// logits of the letters without a space before them are compared. The text is encoded with the tokenizer's special
    /// tokens.
    Mmlu,
    /// As the tasks `mmlu` and `wmdp` of lm-evaluation-harness: the question without surrounding white space, and the
    /// log-likelihoods of " A", " B" and so on after "Answer:" are compared.
    #[default]
    LmEval,
    /// As Qi et al. (arXiv 2412.07097) check it: no examples, the prompt ends in "Answer: " with the space, and the model
    /// writes its answer, which has to be the letter.
    Qi,
}

impl PromptForm {
    /// The text before the answer: the header, the examples with their answers, the question.
    pub fn prompt(self, subject: Option<&str>, shots: &[&Question], question: &Question) -> String {
        let about = subject.map(|subject| format!(" about {}", subject.replace('_', " "))).unwrap_or_default();
        let mut text = format!("The following are multiple choice questions (with answers){about}.\n\n");
        for shot in shots {
            self.ask(shot, &mut text);
            text.push_str(&format!(" {}\n\n", shot.letter()));
        }
        self.ask(question, &mut text);
        if self == Self::Qi {
            text.push(' ');
        }
        text
    }

    /// Whether the model writes its answer.
    pub fn is_written(self) -> bool {
        self == Self::Qi
    }

    /// The texts whose probabilities after a prompt of so many choices are compared; `None` where the model writes its answer.
    pub fn continuations(self, choices: usize) -> Option<Vec<String>> {
        let letters = LETTERS.iter().take(choices);
        match self {
            Self::Mmlu => Some(letters.map(|letter| letter.to_string()).collect()),
            Self::LmEval => Some(letters.map(|letter| format!(" {letter}")).collect()),
            Self::Qi => None,
        }
    }

    fn ask(self, question: &Question, text: &mut String) {
        text.push_str(match self {
            Self::Mmlu | Self::Qi => &question.question,
            Self::LmEval => question.question.trim(),
        });
        for (letter, choice) in LETTERS.iter().zip(&question.choices) {
            text.push_str(&format!("\n{letter}. {choice}"));
        }
        text.push_str("\nAnswer:");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(text: &str, answer: usize) -> Question {
        let choices = ["north", "south", "east", "west"].map(str::to_string).to_vec();
        Question { question: text.into(), choices, answer, subject: Some("map_reading".into()) }
    }

    #[test]
    fn the_prompt_of_the_tar_authors_is_exactly_this_text() {
        let shot = question("Where is the pole star?", 0);
        let asked = question(" Where does the sun rise? ", 2);
        let prompt = PromptForm::Mmlu.prompt(Some("map_reading"), &[&shot], &asked);
        let expected = "The following are multiple choice questions (with answers) about map reading.\n\n\
                        Where is the pole star?\nA. north\nB. south\nC. east\nD. west\nAnswer: A\n\n \
                        Where does the sun rise? \nA. north\nB. south\nC. east\nD. west\nAnswer:";
        assert_eq!(prompt, expected);
        assert_eq!(PromptForm::Mmlu.continuations(4).unwrap(), ["A", "B", "C", "D"]);
    }

    #[test]
    fn the_prompt_of_lm_evaluation_harness_is_exactly_this_text() {
        let shot = question("Where is the pole star?\n", 0);
        let asked = question(" Where does the sun rise? ", 2);
        let prompt = PromptForm::LmEval.prompt(Some("map_reading"), &[], &asked);
        let body = "Where does the sun rise?\nA. north\nB. south\nC. east\nD. west\nAnswer:";
        let header = "The following are multiple choice questions (with answers) about map reading.\n\n";
        assert_eq!(prompt, format!("{header}{body}"));
        let prompt = PromptForm::LmEval.prompt(None, &[&shot], &asked);
        let first = "Where is the pole star?\nA. north\nB. south\nC. east\nD. west\nAnswer: A\n\n";
        assert_eq!(prompt, format!("The following are multiple choice questions (with answers).\n\n{first}{body}"));
        assert_eq!(PromptForm::LmEval.continuations(4).unwrap(), [" A", " B", " C", " D"]);
    }

    #[test]
    fn the_prompt_of_written_answers_ends_in_a_space() {
        let prompt = PromptForm::Qi.prompt(Some("map_reading"), &[], &question("Where does the sun rise?", 2));
        let expected = "The following are multiple choice questions (with answers) about map reading.\n\n\
                        Where does the sun rise?\nA. north\nB. south\nC. east\nD. west\nAnswer: ";
        assert_eq!(prompt, expected);
        assert_eq!(PromptForm::Qi.continuations(4), None);
    }
}
