//! The one binary `wisp`.

#[cfg(stands_alone)]
mod alone;

fn main() -> std::process::ExitCode {
    api::command::main()
}
