//! The part of MessagePack that our frames use: nil, bool, integers, floats, strings, bytes,
//! arrays, and maps with string keys.

#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Nil,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(String),
    Bin(Vec<u8>),
    Arr(Vec<Value>),
    Map(Vec<(String, Value)>),
}

static NIL: Value = Value::Nil;
const MAX_DEPTH: usize = 16;

impl Value {
    /// The entry `key` of a map; nil where there is none.
    pub fn get(&self, key: &str) -> &Value {
        match self {
            Value::Map(entries) => entries.iter().find(|(k, _)| k == key).map_or(&NIL, |(_, v)| v),
            _ => &NIL,
        }
    }

    pub fn str(&self) -> &str {
        if let Value::Str(text) = self { text } else { "" }
    }

    pub fn int(&self) -> Option<i64> {
        if let Value::Int(number) = self { Some(*number) } else { None }
    }

    pub fn bool(&self) -> bool {
        matches!(self, Value::Bool(true))
    }

    pub fn bytes(&self) -> Option<&[u8]> {
        match self {
            Value::Bin(data) => Some(data),
            Value::Str(text) => Some(text.as_bytes()),
            _ => None,
        }
    }

    pub fn list(&self) -> &[Value] {
        if let Value::Arr(items) = self { items } else { &[] }
    }

    pub fn entries(&self) -> &[(String, Value)] {
        if let Value::Map(entries) = self { entries } else { &[] }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        put(&mut out, self);
        out
    }

    pub fn decode(data: &[u8]) -> Option<Value> {
        let mut reader = Reader { data, at: 0 };
        let value = reader.value(0)?;
        (reader.at == data.len()).then_some(value)
    }
}

/// `map! { "t" => v, ... }` with values that convert.
#[macro_export]
macro_rules! map {
    ($($key:expr => $value:expr),* $(,)?) => {
        $crate::msgpack::Value::Map(vec![$(($key.to_string(), $crate::msgpack::Value::from($value))),*])
    };
}

impl From<i64> for Value {
    fn from(v: i64) -> Self { Value::Int(v) }
}
impl From<i32> for Value {
    fn from(v: i32) -> Self { Value::Int(v.into()) }
}
impl From<u64> for Value {
    fn from(v: u64) -> Self { Value::Int(v as i64) }
}
impl From<bool> for Value {
    fn from(v: bool) -> Self { Value::Bool(v) }
}
impl From<&str> for Value {
    fn from(v: &str) -> Self { Value::Str(v.to_string()) }
}
impl From<String> for Value {
    fn from(v: String) -> Self { Value::Str(v) }
}
impl From<Vec<u8>> for Value {
    fn from(v: Vec<u8>) -> Self { Value::Bin(v) }
}
impl From<Vec<Value>> for Value {
    fn from(v: Vec<Value>) -> Self { Value::Arr(v) }
}

fn put_len(out: &mut Vec<u8>, len: usize, fix: Option<(u8, usize)>, tags: [u8; 3]) {
    match fix {
        Some((base, limit)) if len < limit => out.push(base | len as u8),
        _ if len < 1 << 8 && tags[0] != 0 => out.extend([tags[0], len as u8]),
        _ if len < 1 << 16 => {
            out.push(tags[1]);
            out.extend((len as u16).to_be_bytes());
        }
        _ => {
            out.push(tags[2]);
            out.extend((len as u32).to_be_bytes());
        }
    }
}

fn put_str(out: &mut Vec<u8>, text: &str) {
    put_len(out, text.len(), Some((0xa0, 32)), [0xd9, 0xda, 0xdb]);
    out.extend(text.as_bytes());
}

fn put(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Nil => out.push(0xc0),
        Value::Bool(flag) => out.push(if *flag { 0xc3 } else { 0xc2 }),
        Value::Int(n) if (0..128).contains(n) => out.push(*n as u8),
        Value::Int(n) => {
            out.push(0xd3);
            out.extend(n.to_be_bytes());
        }
        Value::Float(x) => {
            out.push(0xcb);
            out.extend(x.to_be_bytes());
        }
        Value::Str(text) => put_str(out, text),
        Value::Bin(data) => {
            put_len(out, data.len(), None, [0xc4, 0xc5, 0xc6]);
            out.extend(data);
        }
        Value::Arr(items) => {
            put_len(out, items.len(), Some((0x90, 16)), [0, 0xdc, 0xdd]);
            items.iter().for_each(|item| put(out, item));
        }
        Value::Map(entries) => {
            put_len(out, entries.len(), Some((0x80, 16)), [0, 0xde, 0xdf]);
            for (key, item) in entries {
                put_str(out, key);
                put(out, item);
            }
        }
    }
}

struct Reader<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(count)?;
        let part = self.data.get(self.at..end)?;
        self.at = end;
        Some(part)
    }

    fn uint(&mut self, size: usize) -> Option<u64> {
        Some(self.take(size)?.iter().fold(0, |n, byte| n << 8 | u64::from(*byte)))
    }

    fn text(&mut self, len: usize) -> Option<Value> {
        // Paths and arguments may hold any bytes: what is not UTF-8 stays bytes.
        let raw = self.take(len)?;
        Some(match std::str::from_utf8(raw) {
            Ok(text) => Value::Str(text.to_string()),
            Err(_) => Value::Bin(raw.to_vec()),
        })
    }

    fn array(&mut self, len: usize, depth: usize) -> Option<Value> {
        if len > self.data.len() - self.at {
            return None;
        }
        (0..len).map(|_| self.value(depth)).collect::<Option<Vec<_>>>().map(Value::Arr)
    }

    fn map(&mut self, len: usize, depth: usize) -> Option<Value> {
        if len > self.data.len() - self.at {
            return None;
        }
        let mut entries = Vec::with_capacity(len);
        for _ in 0..len {
            let Value::Str(key) = self.value(depth)? else { return None };
            entries.push((key, self.value(depth)?));
        }
        Some(Value::Map(entries))
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        if depth > MAX_DEPTH {
            return None;
        }
        let next = depth + 1;
        let tag = self.take(1)?[0];
        Some(match tag {
            0x00..=0x7f => Value::Int(tag.into()),
            0x80..=0x8f => return self.map((tag & 15).into(), next),
            0x90..=0x9f => return self.array((tag & 15).into(), next),
            0xa0..=0xbf => return self.text((tag & 31).into()),
            0xc0 => Value::Nil,
            0xc2 | 0xc3 => Value::Bool(tag == 0xc3),
            0xc4..=0xc6 => {
                let len = self.uint(1 << (tag - 0xc4))? as usize;
                Value::Bin(self.take(len)?.to_vec())
            }
            0xca => Value::Float(f32::from_bits(self.uint(4)? as u32).into()),
            0xcb => Value::Float(f64::from_bits(self.uint(8)?)),
            0xcc..=0xcf => Value::Int(i64::try_from(self.uint(1 << (tag - 0xcc))?).ok()?),
            0xd0 => Value::Int((self.uint(1)? as i8).into()),
            0xd1 => Value::Int((self.uint(2)? as i16).into()),
            0xd2 => Value::Int((self.uint(4)? as i32).into()),
            0xd3 => Value::Int(self.uint(8)? as i64),
            0xd9..=0xdb => {
                let len = self.uint(1 << (tag - 0xd9))? as usize;
                return self.text(len);
            }
            0xdc | 0xdd => {
                let len = self.uint(2 << (tag - 0xdc))? as usize;
                return self.array(len, next);
            }
            0xde | 0xdf => {
                let len = self.uint(2 << (tag - 0xde))? as usize;
                return self.map(len, next);
            }
            0xe0..=0xff => Value::Int((tag as i8).into()),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_decodes_to_itself() {
        let long = "x".repeat(70_000);
        let value = map! {
            "a" => 1i64, "b" => -5i64, "c" => true, "d" => long.as_str(), "e" => vec![0u8; 300],
            "f" => vec![Value::Nil, Value::Float(0.5), Value::Int(i64::MIN), Value::Int(i64::MAX)],
        };
        assert_eq!(Value::decode(&value.encode()), Some(value));
    }

    #[test]
    fn short_forms_that_only_others_write_are_read() {
        for number in -32i64..128 {
            assert_eq!(Value::decode(&[number as u8]), Some(Value::Int(number)));
        }
        assert_eq!(Value::decode(&[0xca, 0x3f, 0, 0, 0]), Some(Value::Float(0.5)));
    }

    #[test]
    fn truncated_and_hostile_input_is_refused() {
        let whole = map! { "k" => vec![1u8, 2, 3], "n" => 300i64 }.encode();
        for end in 0..whole.len() {
            assert_eq!(Value::decode(&whole[..end]), None);
        }
        assert_eq!(Value::decode(&[0xdd, 0xff, 0xff, 0xff, 0xff]), None);
        assert_eq!(Value::decode(&[0x91; 64]), None);
    }
}
