//! Which command this is, and which arguments are Codex's.

use std::ffi::{OsStr, OsString};

use lexopt::{Arg, Parser};

use crate::messages::{Result, failure};

#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Run Codex with these arguments. `stops_login`: `login` and `logout` among them are not run.
    Launch {
        arguments: Vec<OsString>,
        stops_login: bool,
    },
    Sync {
        json: bool,
    },
    Update {
        to_bash: bool,
    },
    Uninstall {
        yes: bool,
        force: bool,
    },
    Doctor {
        json: bool,
    },
    Status {
        json: bool,
    },
    Version {
        json: bool,
    },
    InstallCodex,
    RemoveCodex,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Invocation {
    pub command: Command,
    /// `--profile NAME`, before or after a command of `cdx` itself.
    pub profile: Option<String>,
}

/// `knows_profile`: whether there is a configuration of this name. Codex has an option `--profile` too: before other
/// arguments of Codex, the name is of `cdx` only if `cdx` knows it.
pub fn parse(mut arguments: Vec<OsString>, knows_profile: impl Fn(&str) -> bool) -> Result<Invocation> {
    let first = leading_profile(&arguments);
    let words = first.as_ref().map_or(0, |(_, words)| *words);
    if let Some(name) = own_command(arguments.get(words)) {
        let rest = arguments.split_off(words + 1);
        return own(name, rest, first.map(|(profile, _)| profile));
    }
    let profile = first.filter(|(profile, _)| knows_profile(profile)).map(|(profile, words)| {
        arguments.drain(..words);
        profile
    });
    let explicit = arguments.first().is_some_and(|word| word == "--");
    if explicit {
        arguments.remove(0);
    }
    Ok(Invocation { command: Command::Launch { arguments, stops_login: !explicit }, profile })
}

/// The name, and how many arguments it takes.
fn leading_profile(arguments: &[OsString]) -> Option<(String, usize)> {
    let first = arguments.first()?.to_str()?;
    match first.strip_prefix("--profile")? {
        "" => Some((arguments.get(1)?.to_str()?.to_owned(), 2)),
        rest => Some((rest.strip_prefix('=')?.to_owned(), 1)),
    }
}

fn own_command(word: Option<&OsString>) -> Option<&'static str> {
    const COMMANDS: [&str; 8] =
        ["--sync", "--update", "--uninstall", "--doctor", "--version", "--install-codex", "--remove-codex", "status"];
    COMMANDS.into_iter().find(|command| word.is_some_and(|word| word == command))
}

fn own(name: &'static str, rest: Vec<OsString>, mut profile: Option<String>) -> Result<Invocation> {
    let (mut json, mut yes, mut force, mut to_bash) = (false, false, false, false);
    let mut parser = Parser::from_args(rest);
    let wrong =
        |what: String| failure(1, format!("{name} accepts only {}, not '{what}'; nothing was done", options(name)));
    while let Some(argument) = parser.next().map_err(|error| wrong(crate::messages::clean(&error.to_string(), 80)))? {
        match argument {
            Arg::Long("json") if options(name).contains("--json") => json = true,
            Arg::Long("yes") if name == "--uninstall" => yes = true,
            Arg::Long("force") if name == "--uninstall" => force = true,
            Arg::Long("to-bash") if name == "--update" => to_bash = true,
            Arg::Long("profile") => {
                let value = parser.value().map_err(|_| wrong("--profile without a name".into()))?;
                profile = Some(value.into_string().map_err(|_| wrong("--profile with such a name".into()))?);
            }
            Arg::Long(other) => return Err(wrong(format!("--{}", crate::messages::clean(other, 80)))),
            Arg::Short(other) => return Err(wrong(format!("-{other}"))),
            Arg::Value(other) => return Err(wrong(crate::messages::clean(&other.to_string_lossy(), 80))),
        }
    }
    let command = match name {
        "--sync" => Command::Sync { json },
        "--update" => Command::Update { to_bash },
        "--uninstall" => Command::Uninstall { yes, force },
        "--doctor" => Command::Doctor { json },
        "--version" => Command::Version { json },
        "--install-codex" => Command::InstallCodex,
        "--remove-codex" => Command::RemoveCodex,
        _ => Command::Status { json },
    };
    Ok(Invocation { command, profile })
}

fn options(name: &str) -> &'static str {
    match name {
        "--uninstall" => "--yes, --force and --profile NAME",
        "--update" => "--to-bash and --profile NAME",
        "--install-codex" | "--remove-codex" => "--profile NAME",
        _ => "--json and --profile NAME",
    }
}

/// Options of Codex that take a value.
const WITH_VALUE: [&str; 20] = [
    "-c",
    "--config",
    "--enable",
    "--disable",
    "--remote",
    "--remote-auth-token-env",
    "-i",
    "--image",
    "-m",
    "--model",
    "--local-provider",
    "-p",
    "--profile",
    "-s",
    "--sandbox",
    "-a",
    "--ask-for-approval",
    "-C",
    "--cd",
    "--add-dir",
];

/// `codex login` and `codex logout` start by revoking the refresh token of the whole fleet.
pub fn stop_login(arguments: &[OsString]) -> Result<()> {
    let is = |word: &OsStr, texts: &[&str]| texts.iter().any(|text| word == *text);
    let mut words = arguments.iter();
    let first = loop {
        match words.next() {
            None => return Ok(()),
            Some(word) if word == "--" => return Ok(()),
            Some(word) if is(word, &WITH_VALUE) => {
                words.next();
            }
            Some(word) if word.as_encoded_bytes().starts_with(b"-") => {}
            Some(word) => break word,
        }
    };
    let rest: Vec<_> = words.collect();
    let is_login = first == "login";
    if !is_login && first != "logout" || is_login && rest.first().is_some_and(|word| *word == "status") {
        return Ok(());
    }
    if rest.iter().any(|word| is(word, &["-h", "--help"])) {
        return Ok(());
    }
    let name = if is_login { "login" } else { "logout" };
    crate::messages::complain(format_args!(
        "'codex {name}' is not run: it would first revoke the login that the whole fleet shares, on every host."
    ));
    Err(failure(
        64,
        if is_login {
            "To give the fleet a new login: CODEX_HOME=$(mktemp -d) codex login, then 'codex-authd auth upload FILE' with the auth.json in that directory. If that is what you want: cdx -- login"
        } else {
            "To take this host out of the fleet: cdx --uninstall. If everybody is to be logged out: cdx -- logout"
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split_whitespace().map(OsString::from).collect()
    }

    fn parsed(text: &str) -> Invocation {
        parse(words(text), |name| name == "known").unwrap()
    }

    fn launched(text: &str) -> (String, bool, Option<String>) {
        let Invocation { command: Command::Launch { arguments, stops_login }, profile } = parsed(text) else {
            panic!("{text}: not for codex")
        };
        (arguments.join(OsStr::new(" ")).into_string().unwrap(), stops_login, profile)
    }

    #[test]
    fn arguments_are_codexs_but_for_the_first() {
        assert_eq!(launched("exec --version"), ("exec --version".into(), true, None));
        assert_eq!(launched("-- --sync -- x"), ("--sync -- x".into(), false, None));
        assert_eq!(launched(""), (String::new(), true, None));
        assert_eq!(parsed("--sync").command, Command::Sync { json: false });
        assert_eq!(parsed("status --json").command, Command::Status { json: true });
        assert_eq!(parsed("--uninstall --yes --force").command, Command::Uninstall { yes: true, force: true });
        for wrong in ["--uninstall --froce", "--sync --yes", "--doctor x", "--update -v"] {
            assert_eq!(parse(words(wrong), |_| false).unwrap_err().code, 1, "{wrong}");
        }
    }

    #[test]
    fn a_profile_is_of_cdx_only_if_cdx_has_it_or_runs_itself() {
        assert_eq!(launched("--profile known exec"), ("exec".into(), true, Some("known".into())));
        assert_eq!(launched("--profile=known -- exec"), ("exec".into(), false, Some("known".into())));
        assert_eq!(launched("--profile o3 exec"), ("--profile o3 exec".into(), true, None));
        assert_eq!(launched("exec --profile known"), ("exec --profile known".into(), true, None));
        for own in ["--profile other --sync", "--sync --profile other", "--sync --profile=other"] {
            let invocation = parsed(own);
            assert_eq!(invocation.command, Command::Sync { json: false }, "{own}");
            assert_eq!(invocation.profile.as_deref(), Some("other"), "{own}");
        }
    }

    #[test]
    fn login_and_logout_are_stopped_wherever_they_stand() {
        for stopped in
            ["login", "login --device-auth", "-c model=x --search --profile=x login", "logout", "-m o3 logout"]
        {
            assert_eq!(stop_login(&words(stopped)).unwrap_err().code, 64, "{stopped}");
        }
        for allowed in
            ["login status", "logout --help", "help login", "exec login", "-m logout exec x", "--search -- logout", ""]
        {
            assert_eq!(stop_login(&words(allowed)), Ok(()), "{allowed}");
        }
    }
}
