//! The directory's data: pure state without time and network.

use serde::{Serialize, Serializer};
use std::collections::{BTreeMap, HashMap};
use uuid::Uuid;

/// Maximum hospitals of a batch.
pub const BATCH_CAP: usize = 20;

/// A hospital as the API represents it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hospital {
    /// Counts from 1, also after a restart.
    pub id: u64,
    /// The name as sent.
    pub name: String,
    /// The address as sent.
    pub address: String,
    /// The phone number, if one was sent.
    pub phone: Option<String>,
    /// The batch that created it.
    pub creation_batch_id: Option<Uuid>,
    /// False only while its batch is not activated.
    pub active: bool,
    /// The time at which it was stored, in microseconds since 1970. Serialized as a date without time zone.
    #[serde(serialize_with = "naive_date_time")]
    pub created_at: u64,
}

/// A hospital to create.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Draft {
    /// The name, not blank.
    pub name: String,
    /// The address, not blank.
    pub address: String,
    /// The phone number, if any.
    pub phone: Option<String>,
    /// The hospital's batch, if any.
    pub batch: Option<Uuid>,
}

/// The fields of a PUT that were sent; the others stay unchanged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Patch {
    /// A new name, if sent.
    pub name: Option<String>,
    /// A new address, if sent.
    pub address: Option<String>,
    /// The change of the phone number.
    pub phone: PhoneChange,
}

/// How a PUT changes the phone number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum PhoneChange {
    /// Unchanged, because the field was not sent.
    #[default]
    Keep,
    /// Replaced by this number, or removed by null.
    Set(Option<String>),
}

/// Why a batch cannot be activated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unactivatable {
    /// No hospital has this batch id.
    Empty,
    /// At least one of the batch's hospitals is already active.
    AlreadyActive,
}

/// The hospitals, in the order of their ids.
#[derive(Debug)]
pub struct Directory {
    hospitals: BTreeMap<u64, Hospital>,
    batches: HashMap<Uuid, Vec<u64>>,
    last_id: u64,
    capacity: usize,
}

impl Directory {
    /// Creates an empty directory. It keeps the newest `capacity` hospitals and silently deletes older ones, as the server does.
    pub fn new(capacity: usize) -> Self {
        Self { hospitals: BTreeMap::new(), batches: HashMap::new(), last_id: 0, capacity: capacity.max(1) }
    }

    /// Whether another create may *begin* in this batch. The server checks this only before its slow work, so concurrent creates race past
    /// the cap.
    pub fn has_room(&self, batch: Option<Uuid>) -> bool {
        batch.is_none_or(|batch| self.batches.get(&batch).map_or(0, Vec::len) < BATCH_CAP)
    }

    /// Creates a hospital.
    pub fn create(&mut self, draft: Draft, created_at: u64) -> Hospital {
        self.last_id += 1;
        let hospital = Hospital {
            id: self.last_id,
            name: draft.name,
            address: draft.address,
            phone: draft.phone,
            creation_batch_id: draft.batch,
            active: draft.batch.is_none(),
            created_at,
        };
        if let Some(batch) = draft.batch {
            self.batches.entry(batch).or_default().push(hospital.id);
        }
        self.hospitals.insert(hospital.id, hospital.clone());
        if self.hospitals.len() > self.capacity
            && let Some((&oldest, _)) = self.hospitals.first_key_value()
        {
            self.delete(oldest);
        }
        hospital
    }

    /// The number of hospitals ever created, including deleted ones.
    pub fn made(&self) -> u64 {
        self.last_id
    }

    /// All hospitals in the order of their ids.
    pub fn all(&self) -> Vec<Hospital> {
        self.hospitals.values().cloned().collect()
    }

    /// The hospital with this id.
    pub fn get(&self, id: u64) -> Option<&Hospital> {
        self.hospitals.get(&id)
    }

    /// Applies a PUT to the hospital with this id.
    pub fn update(&mut self, id: u64, patch: Patch) -> Option<&Hospital> {
        let hospital = self.hospitals.get_mut(&id)?;
        if let Some(name) = patch.name {
            hospital.name = name;
        }
        if let Some(address) = patch.address {
            hospital.address = address;
        }
        if let PhoneChange::Set(phone) = patch.phone {
            hospital.phone = phone;
        }
        Some(hospital)
    }

    /// Deletes the hospital with this id. Returns whether it existed.
    pub fn delete(&mut self, id: u64) -> bool {
        let Some(hospital) = self.hospitals.remove(&id) else { return false };
        if let Some(batch) = hospital.creation_batch_id
            && let Some(ids) = self.batches.get_mut(&batch)
        {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.batches.remove(&batch);
            }
        }
        true
    }

    /// The hospitals of a batch; none if the batch does not exist.
    pub fn batch(&self, batch: Uuid) -> Option<Vec<Hospital>> {
        let ids = self.batches.get(&batch)?;
        Some(ids.iter().filter_map(|id| self.hospitals.get(id).cloned()).collect())
    }

    /// Activates a batch. Returns the number of hospitals that became active.
    ///
    /// # Errors
    /// [`Unactivatable`] if the batch is empty or one of its hospitals is already active; then nothing changes.
    pub fn activate(&mut self, batch: Uuid) -> Result<usize, Unactivatable> {
        let ids = self.batches.get(&batch).ok_or(Unactivatable::Empty)?;
        if ids.iter().filter_map(|id| self.hospitals.get(id)).any(|hospital| hospital.active) {
            return Err(Unactivatable::AlreadyActive);
        }
        for id in ids {
            if let Some(hospital) = self.hospitals.get_mut(id) {
                hospital.active = true;
            }
        }
        Ok(ids.len())
    }

    /// Deletes a batch. Returns the number of its hospitals.
    pub fn delete_batch(&mut self, batch: Uuid) -> usize {
        let ids = self.batches.remove(&batch).unwrap_or_default();
        for id in &ids {
            self.hospitals.remove(id);
        }
        ids.len()
    }

    /// The number of hospitals that repeat an earlier one's (batch, name, address, phone).
    pub fn duplicates(&self) -> usize {
        let distinct: std::collections::HashSet<_> =
            self.hospitals.values().map(|h| (h.creation_batch_id, &h.name, &h.address, &h.phone)).collect();
        self.hospitals.len() - distinct.len()
    }
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde fixes the signature
fn naive_date_time<S: Serializer>(unix_micros: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&iso_date_time(*unix_micros))
}

/// A Gregorian date and time without time zone, with microseconds only if they are not zero (Python's `isoformat`). The conversion of days
/// is Howard Hinnant's `civil_from_days` ("chrono-compatible low-level date algorithms").
pub fn iso_date_time(unix_micros: u64) -> String {
    let (seconds, micros) = (unix_micros / 1_000_000, unix_micros % 1_000_000);
    let (days, second_of_day) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second_of_day / 3_600, second_of_day / 60 % 60, second_of_day % 60);
    let whole = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
    if micros == 0 { whole } else { format!("{whole}.{micros:06}") }
}
