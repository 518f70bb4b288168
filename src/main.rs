#![forbid(unsafe_code)]
//! The `gyre` command. Everything is in the library's `app` layer.

fn main() -> std::process::ExitCode {
    gyre::app::main()
}
