//! Settings by the names of the command line: the library says `top_p` where the user wrote `--top-p`.

use clap::{ArgMatches, Command};
use temper::Error;

/// The flags of the command that runs.
pub struct Flags(Vec<String>);

impl Flags {
    /// The flags of the subcommand that `matches` chose.
    pub fn of(command: &Command, matches: &ArgMatches) -> Self {
        let chosen = matches.subcommand().and_then(|(name, matches)| Some((command.find_subcommand(name)?, matches)));
        match chosen {
            Some((command, matches)) => Self::of(command, matches),
            None => Self(command.get_arguments().filter_map(|a| a.get_long()).map(str::to_string).collect()),
        }
    }

    /// The error with the flags of settings that have one: of the setting that is wrong, and of those that the remedy
    /// names between backquotes.
    pub fn spell(&self, error: anyhow::Error) -> anyhow::Error {
        match error.downcast::<Error>() {
            Ok(mut ours) => {
                if let Error::Config { key, .. } = &mut ours
                    && let Some(flag) = self.flag(key)
                {
                    *key = flag;
                }
                if let Error::Config { remedy, .. }
                | Error::Input { remedy, .. }
                | Error::Interrupted { remedy, .. }
                | Error::Memory { remedy, .. }
                | Error::NonFinite { remedy, .. } = &mut ours
                    // Suggestions are about keys of a file, also where a flag is spelled like one.
                    && !remedy.starts_with("did you mean")
                {
                    *remedy = self.in_text(remedy);
                }
                ours.into()
            }
            Err(other) => other,
        }
    }

    fn flag(&self, setting: &str) -> Option<String> {
        let name = if setting == "override" { "set".into() } else { setting.replace('_', "-") };
        self.0.contains(&name).then(|| format!("--{name}"))
    }

    fn in_text(&self, text: &str) -> String {
        let mut parts: Vec<String> = text.split('`').map(str::to_string).collect();
        // Between backquotes are the parts of odd index that have another part after them.
        for index in (1..parts.len().saturating_sub(1)).step_by(2) {
            parts[index] = self.flag(&parts[index]).unwrap_or_else(|| format!("`{}`", parts[index]));
        }
        if parts.len().is_multiple_of(2) {
            let last = parts.pop().unwrap_or_default();
            return format!("{}`{last}", parts.concat());
        }
        parts.concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags() -> Flags {
        Flags(["out", "top-p", "set", "resume"].map(String::from).into())
    }

    fn spelled(error: Error) -> String {
        flags().spell(error.into()).to_string()
    }

    #[test]
    fn settings_of_the_command_line_are_named_as_its_flags() {
        let error = Error::config("top_p", "is `out` of range", "set `out`, or leave out `top_k`");
        assert_eq!(spelled(error), "--top-p: is `out` of range; set --out, or leave out `top_k`");
        assert_eq!(spelled(Error::config("override", "no `=`", "write KEY=VALUE")), "--set: no `=`; write KEY=VALUE");
        assert_eq!(spelled(Error::config("tar.out", "is 0", "use 1")), "tar.out: is 0; use 1");
        assert_eq!(spelled(Error::input("file", "bad", "choose another `out`")), "file: bad; choose another --out");
    }

    #[test]
    fn a_lone_backquote_stays() {
        assert_eq!(flags().in_text("`out` and ` alone"), "--out and ` alone");
        assert_eq!(flags().in_text("plain"), "plain");
    }
}
