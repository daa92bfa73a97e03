// Words that tasks are made of: common, short, and without a second meaning as another list's entry.

export const CITIES =
  'London Paris Rome Berlin Boston Chicago Dublin Geneva Havana Lisbon Madrid Moscow Oslo Prague Sydney Vienna'.split(
    ' ',
  );

export const PEOPLE = 'John Mary Daniel Sandra Peter Anna George Ellen'.split(' ');

export const ROOMS = 'kitchen garden office bathroom bedroom hallway cellar library'.split(' ');

export const OBJECTS = 'apple football milk book lamp letter knife basket'.split(' ');

export const THINGS =
  'house table window door chair clock boat ship tree stone wall field horse dog bird fish coat hat shoe ring coin box rope nail wheel bell drum flag map key pen cup plate spoon bread salt sugar water fire smoke cloud rain snow wind star moon sun hill lake sea shore road path bridge tower church school market shop farm mill barn fence gate yard'.split(
    ' ',
  );
