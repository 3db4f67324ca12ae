fn main() -> std::process::ExitCode {
    cdx::run()
}
