//! Files of the box, read and written from inside it: a link can lead anywhere in the box and nowhere else.

use crate::map;
use crate::msgpack::Value;
use std::fs;
use std::ffi::OsStr;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

const MAX_CHUNK: i64 = 4 << 20;
const O_NONBLOCK: i32 = 0o4000; // a FIFO must not block process 1

pub fn handle(request: &Value) -> Value {
    let path = path_in(request, "path");
    let result = match request.get("do").str() {
        "read" => read(path, request),
        "write" => write(path, request),
        "list" => list(path),
        "stat" => fs::metadata(path).map(|meta| describe("".into(), &meta)),
        "mkdir" => fs::create_dir_all(path).map(|()| Value::Nil),
        "remove" => remove(path).map(|()| Value::Nil),
        "rename" => fs::rename(path, path_in(request, "to")).map(|()| Value::Nil),
        other => Err(io::Error::other(format!("unknown file operation {other:?}"))),
    };
    match result {
        Ok(value) => map! { "t" => "file", "op" => request.get("op").clone(), "value" => value },
        Err(error) => map! {
            "t" => "file", "op" => request.get("op").clone(),
            "errno" => error.raw_os_error().unwrap_or(0), "error" => error.to_string(),
        },
    }
}

/// A path: text, or bytes where it is no UTF-8.
fn path_in<'a>(request: &'a Value, key: &str) -> &'a Path {
    Path::new(OsStr::from_bytes(request.get(key).bytes().unwrap_or_default()))
}

fn named(name: &OsStr) -> Value {
    name.to_str().map_or_else(|| Value::Bin(name.as_bytes().to_vec()), Value::from)
}

fn number(request: &Value, key: &str, default: i64) -> i64 {
    request.get(key).int().unwrap_or(default)
}

fn regular(file: &fs::File) -> io::Result<()> {
    const EISDIR: i32 = 21;
    let meta = file.metadata()?;
    if meta.is_dir() {
        return Err(io::Error::from_raw_os_error(EISDIR));
    }
    if meta.is_file() { Ok(()) } else { Err(io::Error::other("not a regular file")) }
}

fn read(path: &Path, request: &Value) -> io::Result<Value> {
    let mut file = fs::OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path)?;
    regular(&file)?;
    file.seek(SeekFrom::Start(number(request, "offset", 0) as u64))?;
    let mut data = Vec::new();
    file.take(number(request, "count", MAX_CHUNK).clamp(0, MAX_CHUNK) as u64).read_to_end(&mut data)?;
    Ok(Value::Bin(data))
}

fn write(path: &Path, request: &Value) -> io::Result<Value> {
    let offset = number(request, "offset", 0);
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(offset == 0).custom_flags(O_NONBLOCK);
    let mut file = options.open(path)?;
    regular(&file)?;
    file.seek(SeekFrom::Start(offset as u64))?;
    file.write_all(request.get("data").bytes().unwrap_or_default())?;
    if let Some(mode) = request.get("mode").int() {
        file.set_permissions(fs::Permissions::from_mode(mode as u32 & 0o7777))?;
    }
    Ok(Value::Nil)
}

fn list(path: &Path) -> io::Result<Value> {
    let mut items = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if let Ok(meta) = fs::symlink_metadata(entry.path()) {
            items.push(describe(named(&entry.file_name()), &meta));
        }
    }
    Ok(Value::Arr(items))
}

fn remove(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

fn describe(name: Value, meta: &fs::Metadata) -> Value {
    let kind = match meta.file_type() {
        kind if kind.is_dir() => "directory",
        kind if kind.is_file() => "file",
        kind if kind.is_symlink() => "link",
        _ => "other",
    };
    map! {
        "name" => name, "kind" => kind, "size" => meta.size(), "mode" => i64::from(meta.mode() & 0o7777),
        "uid" => i64::from(meta.uid()), "gid" => i64::from(meta.gid()), "mtime" => meta.mtime(),
    }
}
