"""What latticed is measured against: installed, compiled or written by the bench itself. No bench lives here."""
