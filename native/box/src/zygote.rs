//! The zygote: one per edge, small, single-threaded; it launches and removes boxes.
//!
//! Requests arrive as frames on descriptor 0, answers leave there. Boxes do not die with it: it is only
//! their launcher, and a restarted edge brings a new one.

use crate::cgroup::Group;
use crate::conn::Conn;
use crate::cradle::{Cradle, Mode};
use crate::frame::PROTOCOL;
use crate::layers::Keeper;
use crate::map;
use crate::msgpack::Value;
use crate::sys::*;
use std::collections::{HashMap, VecDeque};
use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// How often to look whether what is being removed is gone, where nothing tells.
const REMOVAL_MS: i32 = 20;

/// Cradles are made when nobody has asked for anything for so long, as long as enough are left.
const QUIET_MS: i32 = 5;

struct Launch {
    id: String,
    cradle: Cradle,
}

struct Removal {
    request: i64,
    process: Option<OwnedFd>,
    group: Group,
    give_up_at: Instant,
}

struct Zygote {
    conn: Conn,
    /// Process 1 of every live box, by box id: a descriptor cannot be taken for a reused process id.
    boxes: HashMap<String, OwnedFd>,
    children: OwnedFd,
    mode: Mode,
    pool_size: usize,
    made: u64,
    spare: VecDeque<Cradle>,
    launches: Vec<(i64, Launch)>,
    removals: Vec<Removal>,
    /// Groups that boxes have left as good as new, and since when they wait for the next cradle. To make and
    /// to remove them costs more than a command.
    emptied: Vec<(Group, Instant)>,
    /// User namespaces by first id: made once per range, reused by the boxes that follow each other.
    ranges: HashMap<i64, OwnedFd>,
    /// Holds the mounted image layers, once a box has needed one.
    keeper: Option<Keeper>,
}

pub fn main() -> i32 {
    let Ok(children) = child_events() else { return 1 };
    let mut zygote = Zygote {
        conn: Conn::new(unsafe { OwnedFd::from_raw_fd(0) }),
        boxes: HashMap::new(),
        children,
        mode: Mode { privileged: false, own_network: true, group_parents: Vec::new() },
        pool_size: 0,
        made: 0,
        spare: VecDeque::new(),
        launches: Vec::new(),
        removals: Vec::new(),
        emptied: Vec::new(),
        ranges: HashMap::new(),
        keeper: None,
    };
    while zygote.turn().is_ok() {}
    zygote.spare.iter().for_each(Cradle::discard);
    zygote.give_up_emptied(Duration::ZERO);
    for (_, launch) in &zygote.launches {
        launch.cradle.discard();
    }
    0
}

impl Zygote {
    fn turn(&mut self) -> Res<()> {
        let mut fds = self.watched();
        let patience_ms = self.patience_ms();
        wait(&mut fds, patience_ms.unwrap_or(self.next_look_ms()))?;
        let ready: Vec<i32> = fds.iter().filter(|p| p.revents != 0).map(|p| p.fd).collect();
        if ready.contains(&self.children.as_raw_fd()) {
            let mut events = [0; 128];
            while read_some(self.children.as_raw_fd(), &mut events)?.is_some_and(|got| got > 0) {}
        }
        self.finish_launches(&ready);
        while reap_one().is_some() {}
        self.finish_removals();
        self.give_up_emptied(KEEP_EMPTIED);
        if ready.contains(&self.conn.fd()) {
            for frame in self.conn.receive()? {
                self.handle(&frame);
            }
        } else if patience_ms.is_some() && ready.is_empty() {
            self.refill();
        }
        self.conn.flush()
    }

    /// How long nothing must happen before the next cradle is made, if one is missing. While a box is
    /// being launched the processors are its own, unless it has taken the last cradle.
    fn patience_ms(&self) -> Option<i32> {
        if self.conn.backlog() > 0 || self.spare.len() >= self.pool_size {
            return None;
        }
        let few = 2 * self.spare.len() < self.pool_size;
        let now = self.spare.is_empty() || (few && self.launches.is_empty());
        Some(if now { 0 } else { QUIET_MS })
    }

    fn next_look_ms(&self) -> i32 {
        match (self.removals.is_empty(), self.emptied.is_empty()) {
            (false, _) => REMOVAL_MS,
            (true, false) => KEEP_EMPTIED.as_millis() as i32,
            (true, true) => -1,
        }
    }

    fn give_up_emptied(&mut self, after: Duration) {
        self.emptied.retain(|(group, since)| since.elapsed() < after || !group.remove());
    }

    fn watched(&self) -> Vec<PollFd> {
        let entry = |fd: i32, events: i16| PollFd { fd, events, revents: 0 };
        let out = if self.conn.backlog() > 0 { POLLOUT } else { 0 };
        let mut fds = vec![entry(self.conn.fd(), POLLIN | out), entry(self.children.as_raw_fd(), POLLIN)];
        fds.extend(self.launches.iter().map(|(_, l)| entry(l.cradle.socket.as_raw_fd(), POLLIN)));
        fds.extend(self.removals.iter().filter_map(|r| r.process.as_ref()).map(|fd| entry(fd.as_raw_fd(), POLLIN)));
        fds
    }

    fn handle(&mut self, frame: &Value) {
        let request = frame.get("request").int().unwrap_or(0);
        match frame.get("t").str() {
            "configure" => self.configure(frame, request),
            "create" => {
                if let Err(fail) = self.create(frame, request) {
                    self.fail(request, &fail);
                }
            }
            "adopt" => self.adopt(frame, request),
            "destroy" => self.destroy(frame, request),
            other => self.fail(request, &Fail { what: format!("unknown request {other:?}"), errno: 0 }),
        }
    }

    fn fail(&mut self, request: i64, fail: &Fail) {
        self.conn.send(&map! { "request" => request, "error" => fail.text(), "errno" => fail.errno });
    }

    fn configure(&mut self, frame: &Value, request: i64) {
        self.mode = Mode {
            privileged: frame.get("privileged").bool(),
            own_network: true,
            group_parents: frame.get("group_parents").list().iter().map(|p| p.str().to_string()).collect(),
        };
        self.pool_size = frame.get("pool_size").int().unwrap_or(0) as usize;
        self.conn.send(&map! { "request" => request, "protocol" => PROTOCOL });
    }

    fn new_cradle(&mut self) -> Res<Cradle> {
        while let Some((group, _)) = self.emptied.pop() {
            if group.renew() {
                return Cradle::prepare(&self.mode, group);
            }
            group.remove();
        }
        self.made += 1;
        let group = Group::create(&self.mode.group_parents, &format!("{}{}", own_prefix(), self.made))?;
        Cradle::prepare(&self.mode, group)
    }

    fn refill(&mut self) {
        match self.new_cradle() {
            Ok(cradle) => self.spare.push_back(cradle),
            Err(_) => self.pool_size = 0, // the next create reports why
        }
    }

    fn create(&mut self, frame: &Value, request: i64) -> Res<()> {
        let path = frame.get("socket").str();
        let dir = open_path(frame.get("dir").str())?;
        let listener = bound_socket(&format!("/proc/self/fd/{}/{path}", dir.as_raw_fd()))?;
        let range = frame.get("id_base").int();
        if let (Some(base), true) = (range, self.mode.privileged) {
            if !self.ranges.contains_key(&base) {
                self.ranges.insert(base, new_range(base)?);
            }
        }
        let needs_layers = frame.get("keeper").bool();
        if needs_layers {
            self.hold_layers(frame)?;
        }
        let cradle = match self.spare.pop_front() {
            Some(cradle) => cradle,
            None => self.new_cradle()?,
        };
        let userns = range.filter(|_| self.mode.privileged).and_then(|base| self.ranges.get(&base));
        let keeper = self.keeper.as_ref().filter(|_| needs_layers).map(Keeper::namespace);
        if let Err(fail) = cradle.claim(frame, &listener, userns, keeper) {
            cradle.discard();
            return Err(fail);
        }
        let id = frame.get("id").str().to_string();
        self.launches.push((request, Launch { id, cradle }));
        Ok(())
    }

    /// Sees to it that every EROFS layer of a box is mounted.
    fn hold_layers(&mut self, frame: &Value) -> Res<()> {
        if self.keeper.is_none() {
            self.keeper = Some(Keeper::start(frame.get("stage").str())?);
        }
        let Some(keeper) = &mut self.keeper else { return Ok(()) };
        keeper.sweep();
        for layer in frame.get("layers").list() {
            for lower in layer.get("lower").list() {
                if let Value::Map(_) = lower {
                    keeper.hold(lower.get("erofs").str(), frame.get("image_mount").str())?;
                }
            }
        }
        Ok(())
    }

    fn finish_launches(&mut self, ready: &[i32]) {
        let launches = std::mem::take(&mut self.launches);
        for (request, launch) in launches {
            if ready.contains(&launch.cradle.socket.as_raw_fd()) {
                self.finish_launch(request, &launch);
            } else {
                self.launches.push((request, launch));
            }
        }
    }

    fn finish_launch(&mut self, request: i64, launch: &Launch) {
        let cradle = &launch.cradle;
        let answer = crate::cradle::receive(&cradle.socket).map(|(value, _)| value);
        let failed = match answer {
            Ok(value) if value.get("t").str() == "ready" => {
                if let Ok(process) = pidfd(cradle.pid) {
                    self.boxes.insert(launch.id.clone(), process);
                }
                let dirs: Vec<Value> = cradle.group.dirs.iter().map(|d| Value::from(d.as_str())).collect();
                self.conn.send(&map! {
                    "request" => request, "id" => launch.id.as_str(), "pid" => cradle.pid,
                    "groups" => dirs, "unmapped" => value.get("unmapped").clone(),
                    "landlock" => value.get("landlock").clone(),
                });
                return;
            }
            Ok(value) => (value.get("error").str().to_string(), value.get("errno").int().unwrap_or(0)),
            Err(fail) => (format!("process 1 of the box ended while starting: {}", fail.text()), 0),
        };
        cradle.discard();
        self.conn.send(&map! { "request" => request, "error" => failed.0, "errno" => failed.1 });
    }

    /// Takes over a box that an earlier zygote launched.
    fn adopt(&mut self, frame: &Value, request: i64) {
        match pidfd(frame.get("pid").int().unwrap_or(0) as i32) {
            Ok(process) => {
                self.boxes.insert(frame.get("id").str().to_string(), process);
                self.conn.send(&map! { "request" => request });
            }
            Err(fail) => self.fail(request, &fail),
        }
    }

    /// Kills a box and answers when its last process and its control groups are gone.
    fn destroy(&mut self, frame: &Value, request: i64) {
        let dirs = frame.get("groups").list().iter().map(|dir| dir.str().to_string()).collect();
        let process = self.boxes.remove(frame.get("id").str());
        if let Some(process) = &process {
            pidfd_kill(process);
        }
        let give_up_at = Instant::now() + Duration::from_secs(5);
        self.removals.push(Removal { request, process, group: Group { dirs }, give_up_at });
    }

    /// Keeps the groups of a box that is gone for the next one, if they are as good as new and it needs some.
    /// Those of an earlier zygote's boxes go: by their names the edge would take them for leftovers.
    fn keep_emptied(&mut self, group: &Group) -> bool {
        let is_wanted = self.emptied.len() < self.pool_size && group.is_named(&own_prefix());
        let is_kept = is_wanted && group.is_like_new() && group.renew();
        if is_kept {
            self.emptied.push((group.clone(), Instant::now()));
        }
        is_kept
    }

    fn finish_removals(&mut self) {
        let removals = std::mem::take(&mut self.removals);
        for mut removal in removals {
            if removal.process.as_ref().is_some_and(has_ended) {
                removal.process = None;
            }
            let gone = removal.process.is_none() && (self.keep_emptied(&removal.group) || removal.group.remove());
            if gone {
                self.keeper.iter_mut().for_each(Keeper::sweep);
                self.conn.send(&map! { "request" => removal.request, "gone" => true });
                continue;
            }
            if removal.process.is_none() {
                removal.group.kill();
            }
            if Instant::now() > removal.give_up_at {
                let what = format!("box still has processes in {:?}", removal.group.dirs);
                self.fail(removal.request, &Fail { what, errno: 16 });
            } else {
                self.removals.push(removal);
            }
        }
    }
}

/// What the names of this zygote's groups begin with.
fn own_prefix() -> String {
    format!("z{}-", std::process::id())
}

/// Keeps no group for longer than this: the edge removes groups that lie about for `OLD_GROUP_S`.
const KEEP_EMPTIED: Duration = Duration::from_secs(1);

fn has_ended(process: &OwnedFd) -> bool {
    let mut fds = [PollFd { fd: process.as_raw_fd(), events: POLLIN, revents: 0 }];
    wait(&mut fds, 0).is_ok() && fds[0].revents != 0
}

/// A user namespace that maps 65,536 ids from `base`; a short-lived child creates it for us to hold.
pub fn new_range(base: i64) -> Res<OwnedFd> {
    let (ours, theirs) = stream_pair()?;
    let pid = match clone_into(CLONE_NEWUSER)? {
        0 => {
            drop(ours);
            let _ = read_exact(theirs.as_raw_fd(), &mut [0]);
            unsafe { _exit(0) }
        }
        pid => pid,
    };
    let map = format!("0 {base} 65536");
    let made = fs::write(format!("/proc/{pid}/uid_map"), &map)
        .and_then(|()| fs::write(format!("/proc/{pid}/gid_map"), &map))
        .and_then(|()| fs::File::open(format!("/proc/{pid}/ns/user")))
        .named(format!("map ids {base}.."));
    drop(ours);
    drop(theirs);
    unsafe { kill(pid, SIGKILL) };
    wait_pid(pid);
    made.map(OwnedFd::from)
}
