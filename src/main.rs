fn main() -> std::process::ExitCode {
    codex_authd::cli::main()
}
