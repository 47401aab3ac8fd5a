-- Deletes a record whose request was not sent.  ARGV[2] fence
if not held(ARGV[2]) then return { 'lost' } end
forget()
return { 'done' }
