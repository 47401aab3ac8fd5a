-- Renews a host's lease.  KEYS[1] the part's hosts  ARGV[1] this host  [2] lease of its heartbeat
beat(KEYS[1], ARGV[1], tonumber(ARGV[2]))
return { 'done' }
