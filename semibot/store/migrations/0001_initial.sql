-- Times are milliseconds since 1970-01-01 UTC. JSON columns hold text. Secrets are hashes.

CREATE TABLE organizations (
    id              TEXT PRIMARY KEY,
    default_vm_mode TEXT NOT NULL DEFAULT 'docker',
    created_at      INTEGER NOT NULL
) STRICT;

CREATE TABLE users (
    id         TEXT PRIMARY KEY,
    org_id     TEXT NOT NULL REFERENCES organizations (id),
    vm_mode    TEXT,
    created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE agents (
    id              TEXT PRIMARY KEY,
    org_id          TEXT NOT NULL REFERENCES organizations (id),
    name            TEXT NOT NULL,
    agent_config    TEXT NOT NULL DEFAULT '{}',
    runtime_type    TEXT NOT NULL DEFAULT 'semigraph',
    openclaw_config TEXT,
    default_vm_mode TEXT DEFAULT 'docker',
    created_at      INTEGER NOT NULL
) STRICT;

-- One row per life of an execution plane; a user has at most one that is active.
CREATE TABLE user_vm_instances (
    id                TEXT PRIMARY KEY,
    user_id           TEXT NOT NULL REFERENCES users (id),
    org_id            TEXT NOT NULL,
    mode              TEXT NOT NULL,
    status            TEXT NOT NULL,
    bootstrap_attempts INTEGER NOT NULL DEFAULT 0,   -- since it was last ready
    attempt           INTEGER NOT NULL DEFAULT 0,    -- number of the newest attempt, for ever
    link_attempt      INTEGER NOT NULL DEFAULT 0,    -- attempt that the accepted link came from
    boot_hash         TEXT,                          -- of the process whose link was accepted
    dial              INTEGER NOT NULL DEFAULT 0,
    epoch             INTEGER NOT NULL DEFAULT 0,
    level             INTEGER NOT NULL DEFAULT 0,    -- protocol level of the accepted link
    last_bootstrap_at INTEGER,
    last_heartbeat_at INTEGER,
    disconnected_at   INTEGER,
    bootstrap_last_error TEXT,
    created_at        INTEGER NOT NULL,
    terminated_at     INTEGER
) STRICT;
CREATE UNIQUE INDEX one_active_vm ON user_vm_instances (user_id)
    WHERE status NOT IN ('failed', 'terminated');

CREATE TABLE vm_tickets (
    ticket_hash TEXT PRIMARY KEY,
    vm_id       TEXT NOT NULL REFERENCES user_vm_instances (id),
    attempt     INTEGER NOT NULL,
    expires_at  INTEGER NOT NULL,
    used_by     TEXT              -- boot_hash of who spent it; '' for a level 1 VM
) STRICT;
CREATE INDEX tickets_of_vm ON vm_tickets (vm_id, attempt);

CREATE TABLE sessions (
    id              TEXT PRIMARY KEY,
    user_id         TEXT NOT NULL REFERENCES users (id),
    org_id          TEXT NOT NULL,
    agent_id        TEXT,
    title           TEXT NOT NULL,
    runtime_type    TEXT NOT NULL,
    openclaw_config TEXT,
    term            INTEGER NOT NULL DEFAULT 1,
    holder_vm       TEXT,          -- row of the VM that holds it, or NULL
    holder_boot     TEXT,          -- boot_hash of that VM's process
    last_seq        INTEGER NOT NULL DEFAULT 0,   -- committed maximum
    created_at      INTEGER NOT NULL,
    updated_at      INTEGER NOT NULL
) STRICT;
CREATE INDEX sessions_of_user ON sessions (user_id, updated_at DESC, id);
CREATE INDEX sessions_of_holder ON sessions (holder_vm) WHERE holder_vm IS NOT NULL;

-- What is left of a deleted session: enough to stop it in the VM that holds it.
CREATE TABLE tombstones (
    session_id   TEXT PRIMARY KEY,
    user_id      TEXT NOT NULL,
    org_id       TEXT NOT NULL,
    runtime_type TEXT NOT NULL,
    term         INTEGER NOT NULL,
    holder_vm    TEXT,
    holder_boot  TEXT,
    last_seq     INTEGER NOT NULL,
    deleted_at   INTEGER NOT NULL,
    expires_at   INTEGER NOT NULL
) STRICT;

CREATE TABLE runs (
    id         TEXT PRIMARY KEY,
    session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    position   INTEGER NOT NULL,   -- order within the session
    message_id TEXT NOT NULL,
    is_written INTEGER NOT NULL DEFAULT 0,   -- its message may have reached a VM
    wants_cancel INTEGER NOT NULL DEFAULT 0,
    first_seq  INTEGER,            -- of run_started
    last_seq   INTEGER,            -- of the terminal event
    outcome    TEXT,
    receipt    TEXT,
    expires_at INTEGER,            -- when the caller's budget ends
    created_at INTEGER NOT NULL,
    UNIQUE (session_id, position)
) STRICT;
CREATE INDEX open_runs ON runs (session_id, position) WHERE outcome IS NULL;

CREATE TABLE messages (
    id         TEXT PRIMARY KEY,
    session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    position   INTEGER NOT NULL,   -- 2 * the run's for its question, + 1 for its answer
    run_id     TEXT NOT NULL,
    role       TEXT NOT NULL,
    content    TEXT NOT NULL,
    metadata   TEXT NOT NULL DEFAULT '{}',
    created_at INTEGER NOT NULL,
    UNIQUE (session_id, position)
) STRICT;

CREATE TABLE events (
    session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    seq        INTEGER NOT NULL,
    term       INTEGER NOT NULL,
    run_id     TEXT NOT NULL,
    type       TEXT NOT NULL,
    data       TEXT NOT NULL,
    PRIMARY KEY (session_id, seq)
) STRICT, WITHOUT ROWID;

-- What is to be done by a VM. `position` is the order per session.
CREATE TABLE commands (
    id         TEXT PRIMARY KEY,
    session_id TEXT NOT NULL,
    user_id    TEXT NOT NULL,
    position   INTEGER NOT NULL,
    kind       TEXT NOT NULL,      -- user_message, cancel, stop_session, config_update
    run_id     TEXT,
    payload    TEXT NOT NULL,
    boot_hash  TEXT,               -- process it was written to, committed before the first byte
    is_done    INTEGER NOT NULL DEFAULT 0,
    created_at INTEGER NOT NULL,
    UNIQUE (session_id, position)
) STRICT;
CREATE INDEX open_commands ON commands (session_id, position) WHERE is_done = 0;
CREATE INDEX open_commands_of_user ON commands (user_id) WHERE is_done = 0;

CREATE TABLE session_snapshots (
    session_id        TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    term              INTEGER NOT NULL,
    covers_seq        INTEGER NOT NULL,
    checkpoint        TEXT NOT NULL,
    short_term_memory TEXT NOT NULL,
    conversation_state TEXT,
    file_manifest     TEXT,
    created_at        INTEGER NOT NULL,
    PRIMARY KEY (session_id, term, covers_seq)
) STRICT;

-- Rows of outboxes that have taken effect; for ever, so that a repeat changes nothing.
CREATE TABLE reports_seen (
    user_id TEXT NOT NULL,
    id      TEXT NOT NULL,
    PRIMARY KEY (user_id, id)
) STRICT, WITHOUT ROWID;

CREATE TABLE usage_records (
    id         INTEGER PRIMARY KEY,
    org_id     TEXT NOT NULL,
    user_id    TEXT NOT NULL,
    session_id TEXT,
    model      TEXT NOT NULL,
    tokens_in  INTEGER NOT NULL,
    tokens_out INTEGER NOT NULL,
    latency_ms REAL,
    created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX usage_of_user ON usage_records (user_id, id DESC);

CREATE TABLE usage_daily (
    user_id    TEXT NOT NULL,
    day        TEXT NOT NULL,      -- UTC, YYYY-MM-DD
    model      TEXT NOT NULL,
    reports    INTEGER NOT NULL,
    tokens_in  INTEGER NOT NULL,
    tokens_out INTEGER NOT NULL,
    PRIMARY KEY (user_id, day, model)
) STRICT, WITHOUT ROWID;

CREATE TABLE audit_log (
    id         INTEGER PRIMARY KEY,
    user_id    TEXT NOT NULL,
    session_id TEXT,
    event      TEXT NOT NULL,
    details    TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX audit_of_user ON audit_log (user_id, id DESC);

CREATE TABLE evolved_skills (
    id            INTEGER PRIMARY KEY,
    user_id       TEXT NOT NULL,
    session_id    TEXT,
    name          TEXT NOT NULL,
    description   TEXT NOT NULL,
    skill_md      TEXT NOT NULL,
    quality_score REAL NOT NULL,
    status        TEXT NOT NULL,
    created_at    INTEGER NOT NULL
) STRICT;

CREATE TABLE memories (
    id          INTEGER PRIMARY KEY,
    org_id      TEXT NOT NULL,
    user_id     TEXT NOT NULL,
    agent_id    TEXT NOT NULL,
    session_id  TEXT,
    content     TEXT NOT NULL,
    words       TEXT NOT NULL,     -- the content for the index: ideographs stand apart
    memory_type TEXT NOT NULL,
    importance  REAL NOT NULL,
    metadata    TEXT NOT NULL DEFAULT '{}',
    created_at  INTEGER NOT NULL
) STRICT;
CREATE INDEX memories_of_user ON memories (user_id, id DESC);
CREATE VIRTUAL TABLE memories_text USING fts5 (
    words, content = 'memories', content_rowid = 'id', tokenize = 'unicode61'
);
CREATE TRIGGER memories_added AFTER INSERT ON memories BEGIN
    INSERT INTO memories_text (rowid, words) VALUES (new.id, new.words);
END;
CREATE TRIGGER memories_removed AFTER DELETE ON memories BEGIN
    INSERT INTO memories_text (memories_text, rowid, words) VALUES ('delete', old.id, old.words);
END;

CREATE TABLE idempotency_keys (
    user_id    TEXT NOT NULL,
    key        TEXT NOT NULL,
    body_hash  TEXT NOT NULL,
    session_id TEXT,
    run_id     TEXT,
    answer     TEXT,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (user_id, key)
) STRICT, WITHOUT ROWID;

-- Written to learn whether writing works.
CREATE TABLE store_check (
    id         INTEGER PRIMARY KEY CHECK (id = 1),
    checked_at INTEGER NOT NULL
) STRICT;
