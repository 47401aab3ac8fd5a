-- How long ago a byte was last sent, if the record is unsettled.
local sent = unsettled(read())
if sent then return { 'unsettled', whole(now - sent) } end
return { 'settled' }
