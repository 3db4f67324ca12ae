//! `codex-authd man DIR`: writes the manual pages, generated from the command line parser and the packaged
//! configuration file, so that they match the program.
//!
//! There is one page for the program, one for each command with its subcommands, and one for the configuration. The
//! same version always writes the same bytes. A crash leaves some of the pages: run it again.

mod configuration;
mod sections;

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Command, CommandFactory as _, ValueHint};
use clap_mangen::Man;
use clap_mangen::roff::Roff;

use super::CliError;

/// The date of the last large change of the texts. A page needs a date, but not the date of its generation.
const DATE: &str = "2026-11-26";
const MANUAL: &str = "codex-authd";

#[derive(Args)]
pub struct Arguments {
    /// Directory for the pages; it is created if it is missing
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    directory: PathBuf,
}

pub fn run(arguments: &Arguments, json: bool) -> Result<(), CliError> {
    let directory = &arguments.directory;
    let failed = |path: PathBuf| move |cause| CliError::Write { path, cause };
    std::fs::create_dir_all(directory).map_err(failed(directory.clone()))?;
    let pages = pages().map_err(failed(directory.clone()))?;
    for (name, text) in &pages {
        let path = directory.join(name);
        std::fs::write(&path, text).map_err(failed(path))?;
    }
    let names: Vec<&String> = pages.iter().map(|(name, _)| name).collect();
    let sentence = format!("Wrote {} pages to {}; show one with `man -l FILE`.", names.len(), directory.display());
    super::print::done(json, &serde_json::json!({ "directory": directory, "pages": names }), &sentence)?;
    Ok(())
}

/// Returns the file name and the content of each page.
fn pages() -> std::io::Result<Vec<(String, Vec<u8>)>> {
    let mut program = super::Arguments::command();
    program.build();
    let commands: Vec<&Command> = program.get_subcommands().filter(|command| !command.is_hide_set()).collect();
    let mut pages = vec![of_program(&program, &commands)?];
    for command in commands {
        pages.push(of_command(command)?);
    }
    pages.push(("codex-authd-config.5".into(), configuration::page()?));
    Ok(pages)
}

fn man(command: &Command) -> Man {
    let source = format!("codex-authd {}", env!("CARGO_PKG_VERSION"));
    Man::new(command.clone()).date(DATE).source(source).manual(MANUAL)
}

fn of_program(program: &Command, commands: &[&Command]) -> std::io::Result<(String, Vec<u8>)> {
    let man = man(program);
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    sections::description(&mut page)?;
    page.extend(options(&man)?.bytes());
    man.render_subcommands_section(&mut page)?;
    let names: Vec<String> = commands.iter().map(|command| display_name(command)).collect();
    sections::end(&mut page, program.get_name(), &names)?;
    Ok((man.get_filename(), page))
}

fn of_command(command: &Command) -> std::io::Result<(String, Vec<u8>)> {
    let man = man(command);
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    let actions: Vec<&Command> = command.get_subcommands().filter(|action| !action.is_hide_set()).collect();
    if !actions.is_empty() {
        Roff::default().control("SH", ["COMMANDS"]).to_writer(&mut page)?;
    }
    for action in actions {
        part(action, &mut page)?;
    }
    page.extend(options(&man)?.bytes());
    sections::end(&mut page, command.get_name(), &[])?;
    Ok((man.get_filename(), page))
}

/// Writes a subcommand as a section of its command's page. Options of all commands are listed only once, at the end.
fn part(action: &Command, page: &mut Vec<u8>) -> std::io::Result<()> {
    let own = action.clone().mut_args(|argument| {
        let everywhere = argument.is_global_set() || argument.get_id() == "help";
        if everywhere { argument.hide(true) } else { argument }
    });
    Roff::default().control("SS", [action.get_name()]).to_writer(&mut *page)?;
    let man = Man::new(own);
    page.extend(body(&text_of(&man, Man::render_synopsis_section)?).bytes());
    Roff::default().control("PP", []).to_writer(&mut *page)?;
    page.extend(body(&text_of(&man, Man::render_description_section)?).bytes());
    page.extend(body(&options(&man)?).bytes());
    Ok(())
}

/// Removes the heading of a section: within a page it gets another one.
fn body(section: &str) -> &str {
    section.split_once(".SH ").and_then(|(_, rest)| rest.split_once('\n')).map_or("", |(_, body)| body)
}

/// clap_mangen puts an extra line break before the list of possible values.
fn options(man: &Man) -> std::io::Result<String> {
    Ok(text_of(man, Man::render_options_section)?.replace("\n.br\n\n.br\n", "\n.br\n"))
}

fn text_of(man: &Man, section: fn(&Man, &mut dyn Write) -> std::io::Result<()>) -> std::io::Result<String> {
    let mut text = Vec::new();
    section(man, &mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn display_name(command: &Command) -> String {
    command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_with_an_example_or_needs_none() {
        let pages = pages().unwrap();
        let mut program = super::super::Arguments::command();
        program.build();
        for command in program.get_subcommands() {
            let name = format!("codex-authd-{}.1", command.get_name());
            let (_, page) = pages.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("{name}"));
            let page = String::from_utf8_lossy(page);
            for wanted in [".SH EXAMPLES", ".SH \"EXIT STATUS\"", ".SH FILES", ".SH ENVIRONMENT", ".SH \"SEE ALSO\""] {
                assert!(page.contains(wanted), "{name} has no {wanted}");
            }
            for action in command.get_subcommands() {
                assert!(page.contains(&format!(".SS {}\n", action.get_name())), "{name}: {}", action.get_name());
            }
        }
    }
}
