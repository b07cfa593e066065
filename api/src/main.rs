//! The one binary `wisp`.

fn main() -> std::process::ExitCode {
    api::command::main()
}
