//! Where the answers stand in a rendered conversation, also where a template writes a turn in another way once others follow.

use std::fmt;
use std::ops::Range;

/// Marks the end of a thought in the answers of thinking models; templates drop what is before it.
const END_OF_THOUGHT: &str = "</think>";

/// A rendered conversation and what of it is learned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answers {
    /// The whole conversation.
    pub text: String,
    /// The bytes that the assistant says, one range a turn that is learned.
    pub spans: Vec<Range<usize>>,
    /// What was done where the template does not write a turn in one way.
    pub notes: Vec<Note>,
}

/// Something that a user should know about how conversations become samples.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Note {
    /// Earlier answers are written in another way once later turns follow, and are not learned.
    EarlierAnswersLeftOut,
    /// Only the last turn has this text behind it.
    EndsTheLastOnly(String),
    /// The generation prompt ends in this text, which answers of the data do not begin with.
    PromptGoesOn(String),
    /// The turns before an answer are written in another way once it is there.
    QuestionChanges,
    /// A part of what an answer says is not in the text.
    AnswerShortened,
    /// Answers end in this text, and no token of it is one that ends a text.
    NoEnd(String),
    /// A message begins with the start token: it was rendered before.
    RenderedBefore,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::EarlierAnswersLeftOut => f.write_str(
                "the chat template writes earlier answers differently once later turns follow, as those of thinking models \
                 do; of such a conversation only the answers are learned that stay as they are, which is at least the last \
                 one; a row for each answer teaches all of them",
            ),
            Self::EndsTheLastOnly(end) => write!(
                f,
                "the chat template writes {end:?} behind the last turn only; earlier answers are learned without it"
            ),
            Self::PromptGoesOn(rest) => write!(
                f,
                "the chat template's generation prompt ends in {rest:?}, which the answers of the data do not begin with; \
                 they are learned without it"
            ),
            Self::QuestionChanges => f.write_str(
                "the chat template writes the turns before an answer differently once the answer is there (some leave out \
                 the system message then); they are kept as they are with the answer",
            ),
            Self::AnswerShortened => f.write_str(
                "the chat template does not write all that the assistant says (some leave out thoughts); what it leaves out \
                 is not learned",
            ),
            Self::NoEnd(end) => write!(
                f,
                "no end token is learned: answers end in {end:?}, and the model is not taught to stop there; name the \
                 `eos_token` in tokenizer_config.json, or use a chat template that writes one"
            ),
            Self::RenderedBefore => f.write_str(
                "a message begins with the start token, as if it had been through a chat template before; give rendered \
                 conversations as `text`",
            ),
        }
    }
}

/// The renderings that show where one answer of a conversation stands.
#[derive(Clone, Copy)]
pub struct Renderings<'a> {
    /// The whole conversation.
    pub whole: &'a str,
    /// The turns before the answer, with the generation prompt.
    pub asked: &'a str,
    /// The turns up to the answer.
    pub answered: &'a str,
    /// What the turn before the answer says.
    pub question: &'a str,
    /// What the answer says.
    pub answer: &'a str,
}

/// Where an answer was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// At these bytes of the whole conversation.
    Here(Range<usize>),
    /// The whole conversation does not have it as it was said.
    Rewritten,
    /// It cannot be told where it begins.
    Unknown,
}

impl Renderings<'_> {
    /// Finds the answer in the whole conversation: it begins where the generation prompt ends and goes on for as long as
    /// the whole conversation agrees with the rendering that ends with it. `notes` gets what is special about it.
    pub fn locate(&self, notes: &mut Vec<Note>) -> Place {
        let Some(start) = self.start(notes) else { return Place::Unknown };
        let mut end = common(self.answered, self.whole);
        if end < self.answered.len() {
            let rest = self.answered.get(start..).unwrap_or_default();
            let said = rest.find(self.answer.trim()).map(|at| start + at + self.answer.trim().len());
            let Some(said) = said.filter(|said| (start..=end).contains(said)) else { return Place::Rewritten };
            end = said + finished(&self.answered[said..end]);
            notes.push(Note::EndsTheLastOnly(self.answered[end..].to_string()));
        }
        // The generation prompt may begin the answer's thought.
        let turn = self.answered[..start].rfind(self.question.trim()).unwrap_or(0);
        if !says(&self.answered[turn..], self.answer) {
            notes.push(Note::AnswerShortened);
        }
        Place::Here(start..end)
    }

    /// Finds where the answer begins in the rendering that ends with it: behind the generation prompt, or where that
    /// parts from the answer of the data (a thought that the prompt begins), or behind the question's turn.
    fn start(&self, notes: &mut Vec<Note>) -> Option<usize> {
        let agree = common(self.asked, self.answered);
        if agree == self.asked.len() {
            return Some(agree);
        }
        let question = self.question.trim();
        let turn = self.asked.rfind(question).filter(|_| !question.is_empty())?;
        let prompt = turn + question.len();
        let begins = |&at: &usize| self.answered.get(at..).is_some_and(|rest| begins_with(rest, self.answer));
        if let Some(start) = (prompt..=agree).rev().find(begins) {
            notes.push(Note::PromptGoesOn(self.asked[start..].to_string()));
            return Some(start);
        }
        let turn = &self.asked[turn..];
        let at = agree + self.answered[agree..].find(turn)?;
        notes.push(Note::QuestionChanges);
        Some(at + turn.len())
    }
}

/// The number of bytes with which both begin, up to the last whole character.
fn common(a: &str, b: &str) -> usize {
    let same = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    (0..=same).rev().find(|&at| a.is_char_boundary(at)).unwrap_or(0)
}

/// The number of bytes of `text` before a special token that it only has the beginning of: two such tokens mostly begin alike.
fn finished(text: &str) -> usize {
    let open = text.rfind(['<', '[']).filter(|&at| !text[at..].contains(['>', ']']));
    open.unwrap_or(text.len())
}

/// Whether `text` begins with the answer, or with what comes after its thought.
fn begins_with(text: &str, answer: &str) -> bool {
    let words = answer.rsplit(END_OF_THOUGHT).next().unwrap_or_default();
    [answer, words].iter().any(|said| !said.trim().is_empty() && text.trim_start().starts_with(said.trim()))
}

/// Whether `text` has all of the answer in it, white space aside.
fn says(text: &str, answer: &str) -> bool {
    let dense = |text: &str| text.chars().filter(|letter| !letter.is_whitespace()).collect::<String>();
    text.contains(answer.trim()) || dense(text).contains(&dense(answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locate(asked: &str, answered: &str, whole: &str) -> (Place, Vec<Note>) {
        let mut notes = Vec::new();
        let renderings = Renderings { whole, asked, answered, question: " q ", answer: "<think>t</think>said" };
        (renderings.locate(&mut notes), notes)
    }

    #[test]
    fn an_answer_is_what_follows_its_prompt() {
        let whole = "u:q a:<think>t</think>said. u:more";
        assert_eq!(locate("u:q a:", "u:q a:<think>t</think>said.", whole), (Place::Here(6..27), vec![]));
    }

    /// Each way in which templates write a turn twice, with what is learned and what the user is told.
    #[test]
    fn templates_that_change_their_mind() {
        let full = "u:q a:<think>t</think>said.";
        let (place, notes) = locate("u:q a:", full, "u:q a:said. u:more");
        assert_eq!((place, notes), (Place::Rewritten, vec![]));

        let end = Note::EndsTheLastOnly("<end>".into());
        assert_eq!(locate("u:q a:", &format!("{full}<end>"), &format!("{full} u:")), (Place::Here(6..27), vec![end]));

        let end = Note::EndsTheLastOnly("<|end|>".into());
        let next = (Place::Here(6..27), vec![end]);
        assert_eq!(locate("u:q a:", &format!("{full}<|end|>"), &format!("{full}<|user|>")), next);

        let prompt = Note::PromptGoesOn("<think>\n".into());
        let stripped = "u:q a:said.";
        let said = (Place::Here(6..11), vec![prompt, Note::AnswerShortened]);
        assert_eq!(locate("u:q a:<think>\n", stripped, stripped), said);

        let moved = "u:q a:<think>t</think>said.";
        assert_eq!(locate("u:system q a:", moved, moved), (Place::Here(6..27), vec![Note::QuestionChanges]));

        assert_eq!(locate("u:q model:", full, full).0, Place::Unknown);
    }

    /// The common beginning of two texts never ends within a character.
    #[test]
    fn characters_stay_whole() {
        assert_eq!((common("aé", "aè"), common("aé", "aé"), common("", "a"), common("ab", "a")), (1, 3, 0, 1));
    }
}
