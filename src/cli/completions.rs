//! `codex-authd completions bash | zsh | fish`: prints the completion script for a shell.

use clap::{Args, CommandFactory as _, ValueEnum};

use super::{CliError, print};

#[derive(Args)]
pub struct Arguments {
    /// The shell
    shell: Shell,
}

#[derive(Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

pub fn run(arguments: &Arguments) -> Result<(), CliError> {
    let shell = match arguments.shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    let mut command = super::Arguments::command();
    let name = command.get_name().to_owned();
    clap_complete::generate(shell, &mut command, name, &mut script);
    if let Shell::Bash = arguments.shell {
        // clap_complete 4.6 handles the hyphen in the program's own name differently in one of two places, and then
        // completes nothing.
        script = String::from_utf8_lossy(&script).replace("codex__subcmd__authd", "codex__authd").into_bytes();
    }
    print::text(&String::from_utf8_lossy(&script))
}
