//! One static binary, three roles: the zygote that launches boxes, process 1 inside each box, and
//! the probe that says what this kernel allows. Standard library only; system calls through libc's
//! C symbols, declared in `sys`.

mod agent;
mod cgroup;
mod conn;
mod confine;
mod cradle;
mod exec;
mod files;
mod frame;
mod landlock;
mod layers;
mod msgpack;
mod net;
mod probe;
mod rootfs;
mod spawner;
mod sys;
mod turns;
mod users;
mod zygote;

fn main() {
    let role = std::env::args().nth(1).unwrap_or_default();
    let code = match role.as_str() {
        "zygote" => zygote::main(),
        "probe" => probe::main(),
        "--version" => {
            println!("baleen-box {} protocol {}", env!("CARGO_PKG_VERSION"), frame::PROTOCOL);
            0
        }
        _ => {
            eprintln!("usage: baleen-box zygote|probe|--version (started by the sandbox edge)");
            2
        }
    };
    std::process::exit(code);
}
